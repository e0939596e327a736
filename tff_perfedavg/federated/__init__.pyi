from tff_perfedavg.federated.builders import build_fed_avg as build_fed_avg
from tff_perfedavg.federated.builders import build_per_fed_avg as build_per_fed_avg
from tff_perfedavg.federated.builders import build_process as build_process
from tff_perfedavg.federated.client_data import BlockClientData as BlockClientData
from tff_perfedavg.federated.client_data import StoreClientData as StoreClientData
from tff_perfedavg.federated.client_data import client_dataset as client_dataset
from tff_perfedavg.federated.client_work import ClientWeighting as ClientWeighting
from tff_perfedavg.federated.functional_model import from_tff as from_tff
from tff_perfedavg.federated.functional_model import to_tff as to_tff
from tff_perfedavg.federated.layout import choose_client_data as choose_client_data
from tff_perfedavg.federated.personalization_eval import (
    build_personalization_eval as build_personalization_eval,
)
from tff_perfedavg.federated.personalization_eval import stack_results as stack_results

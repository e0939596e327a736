from tff_perfedavg import algorithms as algorithms
from tff_perfedavg import data as data
from tff_perfedavg import federated as federated
from tff_perfedavg import models as models
from tff_perfedavg import ondevice as ondevice
from tff_perfedavg import optimization as optimization
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig as FedAvgConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig as PerFedAvgConfig
from tff_perfedavg.data.user_store import UserStore as UserStore
from tff_perfedavg.errors import PerFedAvgError as PerFedAvgError
from tff_perfedavg.federated.builders import build_fed_avg as build_fed_avg
from tff_perfedavg.federated.builders import build_per_fed_avg as build_per_fed_avg
from tff_perfedavg.federated.builders import build_process as build_process
from tff_perfedavg.federated.client_data import client_dataset as client_dataset
from tff_perfedavg.federated.personalization_eval import (
    build_personalization_eval as build_personalization_eval,
)
from tff_perfedavg.models.keras_model import from_keras as from_keras
from tff_perfedavg.ondevice.export import export_tflite as export_tflite
from tff_perfedavg.ondevice.personal import PersonalModel as PersonalModel
from tff_perfedavg.optimization.config import AdaptationConfig as AdaptationConfig
from tff_perfedavg.runtime.local_runtime import use_local_runtime as use_local_runtime

__version__: str

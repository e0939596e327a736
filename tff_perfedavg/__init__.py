"""Per-FedAvg: meta-learning an initial model that every user adapts to itself.

The names below are the library. They are loaded on first use, so importing the
package, or a module that needs neither TensorFlow nor TFF, is immediate.
"""

from __future__ import annotations

from tff_perfedavg import lazy

__version__ = "0.2.0.dev0"

_HOMES = {
    "Adaptation": "optimization.adaptation",
    "AdaptationConfig": "optimization.config",
    "BlockClientData": "federated.client_data",
    "ClientWeighting": "federated.client_work",
    "Description": "data.user_store",
    "ExportConfig": "ondevice.config",
    "FedAvgConfig": "algorithms.fed_avg",
    "LocalAlgorithm": "optimization.local_algorithm",
    "Model": "models.model",
    "OnDeviceModel": "ondevice.runner",
    "PersonalModel": "ondevice.personal",
    "PerFedAvgConfig": "algorithms.per_fed_avg",
    "PerFedAvgError": "errors",
    "Rows": "data.user_store",
    "StoreClientData": "federated.client_data",
    "User": "data.user_store",
    "UserStore": "data.user_store",
    "build_fed_avg": "federated.builders",
    "build_per_fed_avg": "federated.builders",
    "build_process": "federated.builders",
    "build_personalization_eval": "federated.personalization_eval",
    "check_exportable": "ondevice.export",
    "choose_client_data": "federated.layout",
    "client_dataset": "federated.client_data",
    "clip_update": "optimization.update_transforms",
    "char_cnn": "models.convolutional",
    "cnn": "models.convolutional",
    "conv1d": "models.convolutional",
    "conv4": "models.conv4",
    "export_inference": "ondevice.export",
    "export_tflite": "ondevice.export",
    "from_keras": "models.keras_model",
    "from_tff": "federated.functional_model",
    "logistic_regression": "models.dense",
    "mlp": "models.dense",
    "mlp_regressor": "models.dense",
    "stack_results": "federated.personalization_eval",
    "to_tff": "federated.functional_model",
    "use_local_runtime": "runtime.local_runtime",
}

__all__ = ["__version__", *_HOMES]


__getattr__ = lazy.names_of(__name__, _HOMES)


def __dir__():
    return sorted(__all__)

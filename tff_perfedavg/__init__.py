"""Per-FedAvg: meta-learning an initial model that every user adapts to itself.

What most programs need has its name here; the rest is in `models`, `data`, `federated`,
`algorithms`, `optimization` and `ondevice`. Names are loaded on first use, so importing
the package, or a module that needs neither TensorFlow nor TFF, is immediate.
"""

from tff_perfedavg import lazy

__version__ = "0.2.0.dev0"

# Names that stood here in version 0.1.0.
_MOVED = {
    **dict.fromkeys(("Adaptation", "LocalAlgorithm", "clip_update"), "optimization"),
    **dict.fromkeys(("Description", "Rows", "User"), "data"),
    **dict.fromkeys(
        (
            *("Model", "char_cnn", "cnn", "conv1d", "conv4"),
            *("logistic_regression", "mlp", "mlp_regressor"),
        ),
        "models",
    ),
    **dict.fromkeys(
        ("ExportConfig", "OnDeviceModel", "check_exportable", "export_inference"),
        "ondevice",
    ),
    **dict.fromkeys(
        (
            *("BlockClientData", "ClientWeighting", "StoreClientData"),
            *("choose_client_data", "from_tff", "stack_results", "to_tff"),
        ),
        "federated",
    ),
}

__getattr__, __dir__, __all__ = lazy.names_of(__name__, _MOVED)

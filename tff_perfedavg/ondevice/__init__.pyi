from tff_perfedavg.ondevice.config import ExportConfig as ExportConfig
from tff_perfedavg.ondevice.export import check_exportable as check_exportable
from tff_perfedavg.ondevice.export import export_inference as export_inference
from tff_perfedavg.ondevice.export import export_tflite as export_tflite
from tff_perfedavg.ondevice.personal import PersonalModel as PersonalModel
from tff_perfedavg.ondevice.runner import OnDeviceModel as OnDeviceModel

"""Who made a result: the attributes that every result object of this box carries alike."""

import highdicom as hd
from pydicom.dataset import Dataset

from appliance.model import Kind
from appliance.stages.report.codes import PROCESSING_EQUIPMENT
from appliance.stages.report.context import ReportContext

MANUFACTURER = "Scanside"
MODEL_NAME = "Scanside Appliance"
SERIES_NUMBER = {Kind.SR: 9901, Kind.SC: 9902}  # far above what a scanner counts to


def processing_equipment(context: ReportContext) -> hd.ContributingEquipment:
    """Our box as contributing equipment (PS3.3 C.12.1.1.5)."""
    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=context.software_version,
        device_serial_number=context.node,
        purpose_of_reference=PROCESSING_EQUIPMENT,
    )


def set_equipment(dataset: Dataset, context: ReportContext) -> None:
    """General Equipment (PS3.3 C.7.5.1), and room for the series' date, which `determinism.stamp` fills."""
    dataset.ManufacturerModelName = MODEL_NAME
    dataset.DeviceSerialNumber = context.node
    dataset.SoftwareVersions = [context.software_version, context.engine_key[:64]]
    dataset.SeriesDescription = context.series_description
    dataset.SeriesDate = dataset.SeriesTime = ""

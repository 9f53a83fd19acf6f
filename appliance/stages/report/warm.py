"""Make the first result as quick as the following ones: highdicom fills its tables, Pillow loads its font."""

from datetime import UTC, datetime

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage

from appliance.model import Conclusion, EngineIdentity, Finding, Outcome
from appliance.stages.report.context import Label, ReportContext
from appliance.stages.report.determinism import uid_for
from appliance.stages.report.picture import build_picture
from appliance.stages.report.sr import build_sr


def warm_up() -> None:
    """Build a report and a picture of nothing, and throw them away."""
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    header.Modality = "CT"
    header.StudyInstanceUID, header.SeriesInstanceUID = uid_for("warm-up study"), uid_for("warm-up series")
    header.SOPInstanceUID = uid_for("warm-up image")
    header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [1, 1]
    engine = EngineIdentity(id="warm-up", version="0.0.0", status="reference", package_sha256="", model_sha256="")
    finding = Finding(label="nothing", score=0.5, sop_instance_uid=header.SOPInstanceUID, box=(0, 0, 1, 1))
    context = ReportContext(
        node="warm-up",
        outcome=Outcome(conclusion=Conclusion.FINDING, findings=(finding,), engine=engine),
        title="Warm-up",
        labels={"nothing": Label(text="Nothing", code=Code("52101004", "SCT", "Present"), threshold=0.5)},
        study_instance_uid=header.StudyInstanceUID,
        engine_key="warm-up@0.0.0",
        input_digest="",
        revision=0,
        concluded_at=datetime(2000, 1, 1, tzinfo=UTC),
    )
    build_sr(context, [header])
    build_picture(context, [header], None)

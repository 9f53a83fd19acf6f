"""The picture: a Secondary Capture with what the engine says burnt in (PS3.3 A.8.1).

The fall-back for every PACS and viewer that shows no structured report. It carries no patient data in its pixels.

Transfer syntax is Explicit VR Little Endian: each storage SCP takes it, while one without RLE would turn the whole
presentation context down, and with it the only result that such a PACS can show. The price is about 3 MB a picture.
"""

from collections.abc import Sequence

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from appliance.model import Kind
from appliance.stages.report.context import Built, ReportContext
from appliance.stages.report.determinism import quiet, result_uid, series_uid, stamp, write
from appliance.stages.report.drawing import draw
from appliance.stages.report.equipment import MANUFACTURER, SERIES_NUMBER, processing_equipment, set_equipment
from appliance.stages.report.headers import Sources, read_sources

Rgb = NDArray[np.uint8]


def build_picture(context: ReportContext, headers: Sequence[Dataset], rgb: Rgb | None) -> Built:
    """The picture of one concluded job; `headers` as for the structured report.

    `rgb` is the rendered key image, shape (rows, columns, 3), without text; None makes a card of words only. A
    function of its arguments. Raises ValueError as `sr.build_sr` does, or where `rgb` has another shape or type.
    """
    if rgb is not None and (rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape):
        raise ValueError(
            f"the key image has shape {rgb.shape} and type {rgb.dtype}, wanted (rows, columns, 3) of uint8"
        )
    with quiet():
        sources = read_sources(headers, context.study_instance_uid)
        local = sources.local(context.concluded_at, context.box_utc_offset)
        image = _image(context, draw(context, local, rgb))
        image.update(sources.identity)
        _describe(image, context, sources)
        set_equipment(image, context)
        stamp(image, local)
        return write(image, Kind.SC)


def _image(context: ReportContext, pixels: Rgb) -> Dataset:
    sop_instance_uid = result_uid(context, Kind.SC)
    return SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom asks for one; `_describe` empties it
        study_instance_uid=context.study_instance_uid,
        series_instance_uid=series_uid(sop_instance_uid),
        series_number=SERIES_NUMBER[Kind.SC],
        sop_instance_uid=sop_instance_uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        contributing_equipment=[processing_equipment(context)],
    )


def _describe(image: Dataset, context: ReportContext, sources: Sources) -> None:
    """What the picture is and which images it was made from."""
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.ConversionType = "WSD"
    image.BurnedInAnnotation = "YES"
    image.PatientOrientation = []  # a picture with text has none
    if sources.body_part:
        image.BodyPartExamined = sources.body_part
    else:
        image.Laterality = ""  # type 2C: wanted where the body part may be a paired one
    image.DerivationDescription = f"Key image with the result of {context.engine_key} burnt in"
    image.SourceImageSequence = []
    for source in sources.key_images([finding.sop_instance_uid for finding in context.outcome.findings]):
        item = Dataset()
        item.ReferencedSOPClassUID = source.sop_class_uid
        item.ReferencedSOPInstanceUID = source.sop_instance_uid
        image.SourceImageSequence.append(item)

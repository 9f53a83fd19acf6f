"""The structured report: TID 1500 in Comprehensive 3D SR (PS3.3 A.35.13, PS3.16 Annex A).

Every report has an image library of the key images and one group (TID 1501) that states the conclusion; each
finding adds a group (TID 1410) with its outline in source pixels, its score and its measurements. The library and
the coordinates are also what OHIF needs to open the report and to show the findings.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from appliance.model import Conclusion, Finding, Kind
from appliance.stages.report import codes, wording
from appliance.stages.report.context import Built, ReportContext
from appliance.stages.report.determinism import quiet, result_uid, series_uid, stamp, uid_for, write
from appliance.stages.report.equipment import (
    MANUFACTURER,
    MODEL_NAME,
    SERIES_NUMBER,
    processing_equipment,
    set_equipment,
)
from appliance.stages.report.headers import Sources, StandIn, bare_header, read_sources, stand_in

_Group = sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations


def build_sr(context: ReportContext, headers: Sequence[Dataset]) -> Built:
    """The report of one concluded job; `headers` are all images it was responsible for, without pixels.

    Where reading them all takes too long, those of images without a finding may be `headers.bare_header`.
    A function of its arguments only. Raises ValueError if no header can be referred to, or if a finding lies on an
    image that is not among them: both are errors of the caller, no header's content raises.
    """
    with quiet():
        sources = read_sources(headers, context.study_instance_uid)
        findings = context.outcome.findings
        key_images = [stand_in(image) for image in sources.key_images([f.sop_instance_uid for f in findings])]
        local = sources.local(context.concluded_at, context.box_utc_offset)
        groups: list[_Group] = [_status_group(context, key_images[0].dataset, wording.concluded(local))]
        images = {key.dataset.SOPInstanceUID: key.dataset for key in key_images}
        groups += [_finding_group(context, n, f, images[f.sop_instance_uid]) for n, f in enumerate(findings, start=1)]
        root = _content(context, sources, key_images, groups)
        document = _document(context, sources, key_images, root)
        document.update(sources.identity)
        set_equipment(document, context)
        stamp(document, local)
        return write(document, Kind.SR)


def _content(
    context: ReportContext, sources: Sources, key_images: Sequence[StandIn], groups: Sequence[_Group]
) -> Dataset:
    """The root of the content tree."""
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer(context)),
        procedure_reported=codes.PROCEDURE.get(sources.modality, codes.ANY_PROCEDURE),
        imaging_measurements=groups,
        title=codes.REPORT_TITLE,
        referenced_images=[key.dataset for key in key_images],
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(codes.ENGLISH_UK)
        ),
    )
    _drop_invented(report[0], key_images)
    return report[0]


def _document(context: ReportContext, sources: Sources, key_images: Sequence[StandIn], root: Dataset) -> Dataset:
    """The document around `root`, whose children it takes over.

    highdicom copies, parses and searches the tree it is given, which takes longer than all the rest: it gets the
    bare root, and the tree is hung in afterwards. All source images are evidence, so nothing is left to search for.
    """
    tree, root.ContentSequence = root.ContentSequence, sr.ContentSequence()
    listed = {key.dataset.SOPInstanceUID for key in key_images}
    others = (bare_header(image) for image in sources.images if image.sop_instance_uid not in listed)
    sop_instance_uid = result_uid(context, Kind.SR)
    document = sr.Comprehensive3DSR(
        evidence=[*(key.dataset for key in key_images), *others],
        content=root,
        series_instance_uid=series_uid(sop_instance_uid),
        series_number=SERIES_NUMBER[Kind.SR],
        sop_instance_uid=sop_instance_uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=context.outcome.conclusion is not Conclusion.NOT_ANALYSED,
        is_final=False,
        is_verified=False,
        previous_versions=_predecessors(context),
        contributing_equipment=[processing_equipment(context)],
    )
    document.ContentSequence = tree
    _restore_classes(document, key_images)
    _name_private_schemes(document, context)
    return document


def _observer(context: ReportContext) -> sr.ObserverContext:
    return sr.ObserverContext(
        observer_type=sr.CodedConcept.from_code(codes.DEVICE),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=uid_for("device", context.node),
            name=context.node,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=context.node,
        ),
    )


def _algorithm(context: ReportContext) -> sr.AlgorithmIdentification:
    """The engine with all that decides what it says (P8)."""
    engine = context.outcome.engine
    return sr.AlgorithmIdentification(
        name=engine.id,
        version=engine.version,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        parameters=[
            f"threshold: {context.threshold_text}",
            f"status: {engine.status}",
            f"engine package sha256: {engine.package_sha256}",
            f"model sha256: {engine.model_sha256}",
            *([f"plan sha256: {engine.plan_sha256}"] if engine.plan_sha256 else []),
            f"runtime: {f'{engine.runtime} {engine.runtime_version}'.strip() or 'none'}",
            f"device: {engine.device or 'none'}",
            *([f"degraded: {engine.degraded}"] if engine.degraded else []),
        ],
    )


def _status_group(context: ReportContext, image: Dataset, concluded: str) -> sr.MeasurementsAndQualitativeEvaluations:
    """TID 1501 without a NUM item: OHIF reads one without coordinates as a measurement, and fails on it."""
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=result_uid(context, Kind.SR, "status"), identifier="Status"),
        algorithm_id=_algorithm(context),
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(image)],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name, value) for name, value in codes.coded_conclusion(context.outcome)
        ],
    )
    texts = [(codes.CONCLUSION, wording.headline(context))]
    texts += [(codes.COMMENT, line) for line in (*wording.remarks(context), concluded)]
    group[0].ContentSequence.extend(
        sr.TextContentItem(name=name, value=words, relationship_type="CONTAINS") for name, words in texts
    )
    return group


def _finding_group(
    context: ReportContext, number: int, finding: Finding, image: Dataset
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """TID 1410. The volume stands here too: TID 1411 would need a segmentation to refer to."""
    left, top, right, bottom = finding.box
    outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]], dtype=np.float32)
    side = {"R": codes.RIGHT, "L": codes.LEFT}.get(finding.laterality)
    site = context.finding_site
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=result_uid(context, Kind.SR, "finding", str(number)), identifier=f"{context.engine_key} {number}"
        ),
        referenced_region=sr.ImageRegion("POLYLINE", outline, sr.SourceImageForRegion.from_source_image(image)),
        finding_category=codes.ABNORMAL_STRUCTURE if site else None,
        finding_type=context.label(finding.label).code,
        finding_sites=[sr.FindingSite(anatomic_location=site, laterality=side)] if site else None,
        algorithm_id=_algorithm(context),
        measurements=[sr.Measurement(name, value, unit) for name, value, unit in _measurements(finding)],
    )


def _measurements(finding: Finding) -> Iterator[tuple[Code, float, Code]]:
    """Rounded to what can be told apart: a tenth of a millimetre, a whole cubic millimetre."""
    if finding.has_score:
        yield codes.CERTAINTY, round(100 * finding.score, 1), codes.PERCENT
    if finding.long_axis_mm is not None:
        yield codes.LONG_AXIS, round(finding.long_axis_mm, 1), codes.MILLIMETRE
    if finding.short_axis_mm is not None:
        yield codes.SHORT_AXIS, round(finding.short_axis_mm, 1), codes.MILLIMETRE
    if finding.volume_mm3 is not None:
        yield codes.VOLUME, float(round(finding.volume_mm3)), codes.CUBIC_MILLIMETRE


def _predecessors(context: ReportContext) -> list[Dataset] | None:
    if not context.predecessor:
        return None
    earlier = Dataset()
    earlier.StudyInstanceUID = context.study_instance_uid
    earlier.SeriesInstanceUID = context.predecessor_series or series_uid(context.predecessor)
    earlier.SOPClassUID = Comprehensive3DSRStorage
    earlier.SOPInstanceUID = context.predecessor
    return [earlier]


def _drop_invented(root: Dataset, key_images: Sequence[StandIn]) -> None:
    """Take out of the image library what `stand_in` made up to please highdicom."""
    invented = {key.dataset.SOPInstanceUID: key.invented for key in key_images}
    for item in _items(root):
        if item.get("ValueType") == "IMAGE" and "ContentSequence" in item:
            untrue = invented[item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID]
            kept = [part for part in item.ContentSequence if part.ConceptNameCodeSequence[0].CodeValue not in untrue]
            if kept:
                item.ContentSequence = kept
            else:
                del item.ContentSequence


def _restore_classes(document: Dataset, key_images: Sequence[StandIn]) -> None:
    """Refer to each image by its own SOP Class UID, where `stand_in` showed highdicom another one."""
    own = {key.dataset.SOPInstanceUID: key.sop_class_uid for key in key_images if key.replaced_class}
    for item in _items(document) if own else ():
        if item.get("ReferencedSOPInstanceUID") in own:
            item.ReferencedSOPClassUID = own[item.ReferencedSOPInstanceUID]


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """Every data set below `dataset`, a parent before its children."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)


def _name_private_schemes(document: Dataset, context: ReportContext) -> None:
    """Coding Scheme Identification (PS3.3 C.12.1.1.2) for the schemes in use that are in no registry."""
    used = {item.CodingSchemeDesignator for item in _items(document) if "CodingSchemeDesignator" in item}
    named = []
    for scheme in sorted(scheme for scheme in used if scheme.startswith("99")):
        item = Dataset()
        item.CodingSchemeDesignator = scheme
        item.CodingSchemeName = (
            "Scanside" if scheme == codes.PRIVATE_SCHEME else f"as used by {context.engine_key}"[:64]
        )
        named.append(item)
    if named:
        document.CodingSchemeIdentificationSequence = named

"""The acceptance report: one HTML page that a site can print and file. It loads nothing from anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from appliance.rehearsal.acceptance import Verdict
from appliance.rehearsal.report import NO_DEVICE

STYLE = """
body { font: 11pt/1.4 system-ui, sans-serif; color: #111; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
th, td { border: 1px solid #999; padding: .3rem .5rem; text-align: left; vertical-align: top }
td.number { text-align: right } .passed { font-weight: bold } .failed { font-weight: bold; background: #fdd }
dl { display: grid; grid-template-columns: max-content auto; gap: .2rem 1rem } dt { font-weight: bold } dd { margin: 0 }
.sign { margin-top: 3rem; display: flex; gap: 3rem } .sign div { flex: 1; border-top: 1px solid #111 }
@page { size: A4; margin: 15mm } @media print { body { margin: 0; max-width: none } tr { break-inside: avoid } }
"""
HEADS = ("Drill", "What happened", "Faults seen", "Objects", "Sent again", "Seconds to drain", "Verdict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What the report is about."""

    at: str  #: UTC
    host: str
    node: str
    version: str
    config: str  #: the site's configuration file, or words
    config_sha256: str  #: of it, or ""
    seconds: float
    verdicts: Sequence[Verdict]

    @property
    def passed(self) -> bool:
        return bool(self.verdicts) and all(one.passed for one in self.verdicts)


def html(paper: Paper) -> str:
    """The page; every word of it escaped."""
    rows = "\n".join(_row(one) for one in paper.verdicts)
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    verdict = "All drills passed" if paper.passed else "NOT ALL DRILLS PASSED"
    facts = {
        "Date": paper.at,
        "Machine": paper.host,
        "Appliance": paper.node,
        "Scanside version": paper.version,
        "Configuration": paper.config,
        "SHA-256 of it": paper.config_sha256 or "none",
        "Took": f"{paper.seconds:.0f} s",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Scanside: acceptance report</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Scanside: acceptance report of delivery over a bad network</h1>
<dl>{listed}</dl>
<p class="{"passed" if paper.passed else "failed"}" id="verdict">{verdict}.</p>
<table>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
<p>In each drill a synthetic study of nobody was sent by DICOM to this appliance's own processes, on this machine and
with settings of the rehearsal; an engine read its film; a PACS on loopback, or the line to it, misbehaved as described.
A drill passes where every image was acknowledged to the scanner, every image and every result arrived at the PACS byte
for byte (SHA-256 of the data sets), and nothing was held back. An object that is sent again is no fault: delivery is at
least once. The site's own PACS, network and disk were not tested, and nothing was sent to them.</p>
<p>{escape(NO_DEVICE)}</p>
<div class="sign"><div>Name</div><div>Date</div><div>Signature</div></div>
</body>
</html>
"""


def _row(one: Verdict) -> str:
    numbers = (str(one.happened), str(one.objects), str(one.resent), f"{one.drained_s:.1f}")
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    kind, words = ("passed", "passed") if one.passed else ("failed", f"failed: {'; '.join(one.faults)}")
    return (
        f'<tr><th scope="row">{escape(one.drill)}</th><td>{escape(one.what)}</td>{cells}'
        f'<td class="{kind}">{escape(words)}</td></tr>'
    )

"""KLARF files for tests, in the styles that tools write, and the files of others beside the checkout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from places import SHARED

from runtime.errors import KlarfError
from runtime.fab.klarf import KlarfFile, parse_klarf

FIXTURES = SHARED / "fixtures" / "klarf"
_NAMES = "DEFECTID XREL YREL XINDEX YINDEX XSIZE YSIZE CLASSNUMBER TEST MANSEMCLASS IMAGECOUNT IMAGELIST"
FLAT_COLUMNS = _NAMES.split()
NESTED_COLUMNS = (
    "int32 DEFECTID, int32 XREL, int32 YREL, int32 XINDEX, int32 YINDEX, int32 XSIZE, int32 YSIZE, int32 CLASSNUMBER, "
    "int32 TEST, int32 MANSEMCLASS, int32 AUTOOFFSEMCLASS, float KILLPROB, string NOTE, ImageList IMAGEINFO"
)


def fixture(name: str) -> Path:
    """A file of others; the test is skipped where they are not beside the checkout."""
    path = FIXTURES / name
    if not path.is_file():
        pytest.skip("the folder of KLARF files is not beside the project")
    return path


def read(data: bytes) -> KlarfFile:
    """The model of a file's bytes."""
    return parse_klarf(data, "a.klarf")


def reason(data: bytes, kind: type[KlarfError] = KlarfError) -> str:
    """The message with which a file is refused."""
    with pytest.raises(kind) as caught:
        read(data)
    assert type(caught.value) is kind
    return str(caught.value)


def flat_row(number: int, images: Iterable[tuple[int, int]] = (), *, code: int = 0, counted: bool = True) -> str:
    """A row for FLAT_COLUMNS: 1 micrometre right of its die's corner for each number, image list last."""
    pairs = list(images)
    listed = [str(len(pairs))] if counted else []
    words = [f"{number} {number}.5 2.0 1 -2 0.25 0.5 {code} 1 9 {len(pairs)}", *listed, *(f"{a} {b}" for a, b in pairs)]
    return " " + " ".join(words)


def flat(
    rows: Iterable[str],
    *,
    columns: Iterable[str] = FLAT_COLUMNS,
    version: str = "1 2",
    end: str = "\r\n",
    last: str = ";",
    lookup: str = 'ClassLookup 2\n 0 "Unclassified"\n 7 "Hole";',
    wafers: Iterable[str] = ("W1",),
    tiff: str = "TiffFileName lot.tif;",
    lot: str = '"L7"',
) -> bytes:
    """A file of version 1.1 or 1.2; each wafer has the same rows."""
    names = list(columns)
    head = f"""FileVersion {version};
FileTimestamp 07-28-26 10:00:00;
{tiff}
InspectionStationID "maker" "model" "id";
SampleType WAFER;
ResultTimestamp 07-28-2026 09:00:00;
LotID {lot};
SampleSize 1 300;
DeviceID "device";
SetupID "recipe" 07-01-26 08:00:00;
StepID "step";
SampleOrientationMarkType NOTCH;
OrientationMarkLocation DOWN;
DiePitch 1.0000000000e+003 2.0e3;
"""
    bodies = []
    for slot, wafer in enumerate(wafers, start=1):
        bodies.append(f"""DieOrigin 0.0 0.0;
WaferID "{wafer}";
Slot {slot};
SampleCenterLocation 500.0 -1000;
{lookup}
SampleTestPlan 1
  0 0 ;
UnknownKeyword 3 "a;b" "{{" ;
DefectRecordSpec {len(names)} {" ".join(names)} ;
DefectList
{chr(10).join(rows)}{last}
SummarySpec 5 TESTNO NDEFECT DEFDENSITY NDIE NDEFDIE ;
SummaryList
 1 2 5.11e-007 1 1 ;
""")
    return (head + "".join(bodies) + "EndOfFile;\n").replace("\n", end).encode()


def nested_row(number: int, images: str = "N", *, code: str = "0", note: str = '""') -> str:
    """A row for NESTED_COLUMNS."""
    return f"{number} {number}500 2000 1 -2 250 500 {code} 1 9 NA 0.5 {note} {images};"


def nested(
    rows: Iterable[str],
    *,
    columns: str = NESTED_COLUMNS,
    end: str = "\n",
    lookup: str = '0 "Unclassified" "";\n        7 "Hole" "";',
    classes: int = 2,
    wafers: Iterable[str] = ("W1",),
) -> bytes:
    """A file of version 1.8; each wafer has the same rows, and the lot's fields follow them."""
    body = list(rows)
    records = "".join(_wafer_record(wafer, slot, columns, body) for slot, wafer in enumerate(wafers, start=1))
    text = f"""Record FileRecord  "1.8"
{{
  Record LotRecord "L7"
  {{
{records}    Field DeviceID 1 {{"device"}}
    Field DiePitch 2 {{1000000, 2000000}}
    Field InspectionStationID 3 {{"maker", "model", "id"}}
    Field RecipeID 3 {{"recipe", "07-01-26", "08:00:00"}}
    Field ResultTimestamp 2 {{"2026-07-28", "09:00:00"}}
    Field OrientationMarkLocation 1 {{0}}
    Field SampleOrientationMarkType 1 {{"NOTCH"}}
    Field SampleSize 2 {{300000000, 0}}
    Field StepID 1 {{"step"}}
    List ClassLookupList
    {{
      Columns 3 {{ int32 CLASSNUMBER, string CLASSNAME, string CLASSCODE }}
      Data {classes}
      {{
        {lookup}
      }}
    }}
  }}
  Field FileTimestamp 2 {{"2026-07-28", "10:00:00"}}
}}
EndOfFile;
"""
    return text.replace("\n", end).encode()


def _wafer_record(wafer: str, slot: int, columns: str, rows: list[str]) -> str:
    return f"""    Record WaferRecord "{wafer}"
    {{
      Field SampleCenterLocation 2 {{500000, -1000000}}
      Field SlotNumber 1 {{{slot}}}
      List DefectList
      {{
        Columns {columns.count(",") + 1} {{ {columns} }}
        Data {len(rows)}
        {{
          {(chr(10) + "          ").join(rows)}
        }}
      }}
      Record TestRecord "1"
      {{
        Field AreaPerTest 1 {{2.0e+015}}
        List Unknown
        {{
          Columns 1 {{ string TEXT }}
          Data 1 {{ "a;}}b"; }}
        }}
      }}
    }}
"""

"""The texts that the makers of microscopes write into their files and beside them, field by field.

All texts are of bounded length and of others: nothing in them is followed, evaluated or trusted to be there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from .sem_units import LENGTHS_NM, VOLTS_KV, iso_moment, magnification, moment, name, quantity, whole, within
from .sem_values import Reading

if TYPE_CHECKING:
    from xml.etree import ElementTree

Sections: TypeAlias = "Mapping[str, Mapping[str, str]]"

_MOST_LINES = 20_000
"""Of a text with sections, counted twice where lines end in two characters. Real ones have 300."""
_MM = 1e-6
"""Millimetres in a nanometre."""
_ZEISS_KEYS = (
    *("AP_IMAGE_PIXEL_SIZE", "DP_IMAGE_STORE", "AP_MAG", "AP_ACTUALKV", "AP_WD", "DP_DETECTOR_TYPE"),
    *("DP_DETECTOR_CHANNEL", "DP_SEM", "AP_DATE", "AP_TIME"),
)
_ZEISS_HEAD, _ZEISS_SCALE, _ZEISS_COLUMNS = 200, 3, 1024
"""Where older files have the size of a pixel alone: the fourth line, without a name, in m, of an image of 1024 columns.
AP_PIXEL_SIZE is that of the screen."""
_ZEISS_VALUES = {key: re.compile(rf"\n{key}[ \t]*\r?\n[^=:\r\n]{{1,80}}+[=:]([^\r\n]{{0,400}})") for key in _ZEISS_KEYS}
"""The value after a key. Only the keys that are read are looked for: a text has 770 of them."""
_ENTITIES = re.compile(r"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


def text_of(data: bytes) -> str:
    """A text in UTF-16 (with a mark, or with the zeros of plain letters), UTF-8 or Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    if len(data) > 3 and data[1:4:2] == b"\0\0" and data[0] and data[2]:
        return data.decode("utf-16-le", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def sections_of(text: str) -> Sections:
    """`[section]` and `key=value`, as FEI, Hitachi and Tescan write them. What precedes the first section is in "".

    Raises ValueError for more lines than any tool writes.
    """
    if text.count("\n") + text.count("\r") + text.count("\0") > _MOST_LINES:
        raise ValueError(f"it has more than {_MOST_LINES:,} lines")
    found: dict[str, dict[str, str]] = {"": {}}
    section = found[""]
    for line in text.replace("\0", "\n").splitlines():
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            section = found.setdefault(stripped[1:-1].strip(), {})
        else:
            key, mark, value = stripped.partition("=")
            if mark:
                section.setdefault(key.strip(), value.strip())
    return found


def _kv(text: str, assumed: str | None = None) -> float:
    return within(abs(quantity(text, VOLTS_KV, assumed)), 0, 1000, "voltage in kV")


def _mm(text: str, assumed: str | None = None) -> float:
    return within(quantity(text, LENGTHS_NM, assumed) * _MM, 0, 1000, "working distance in mm")


def _enlarged(text: str) -> float:
    return within(magnification(text), 1e-3, 1e9, "magnification")


def read_zeiss(text: str, reading: Reading) -> None:
    """SmartSEM (TIFF tag 34118): a line with the key, then a line with label, mark, value and unit."""
    found = {key: pattern.search(text) for key, pattern in _ZEISS_VALUES.items()}
    values = {key: match[1].strip() for key, match in found.items() if match and match[1].strip()}
    get = values.get
    unnamed = text[:_ZEISS_HEAD].splitlines()[_ZEISS_SCALE : _ZEISS_SCALE + 1]
    if "AP_IMAGE_PIXEL_SIZE" in values:
        reading.take_pixel(lambda: quantity(values["AP_IMAGE_PIXEL_SIZE"], LENGTHS_NM))
    elif unnamed:
        reading.take_pixel(lambda: quantity(unnamed[0], LENGTHS_NM, "m") * _ZEISS_COLUMNS / reading.width)
    if stored := re.fullmatch(r"(\d{1,6}) \* (\d{1,6})", get("DP_IMAGE_STORE", "")):
        reading.require_width(int(stored[1]))
    reading.take("magnification", get("AP_MAG"), _enlarged)
    reading.take("voltage_kv", get("AP_ACTUALKV"), _kv)
    reading.take("working_distance_mm", get("AP_WD"), _mm)
    reading.take("detector", get("DP_DETECTOR_TYPE") or get("DP_DETECTOR_CHANNEL"), name)
    reading.take("model", get("DP_SEM"), name)
    reading.set("maker", "Zeiss")
    if "AP_DATE" in values:
        reading.take("acquired", get("AP_TIME"), partial(moment, values["AP_DATE"]))


def read_fei(sections: Sections, reading: Reading) -> None:
    """FEI and Thermo Fisher (TIFF tags 34680 and 34682, or at the end of the file): lengths in m, voltages in V."""

    def get(section: str, key: str) -> str | None:
        return sections.get(section, {}).get(key) or None

    scan = next((part for part in ("Scan", "EScan", "IScan") if get(part, "PixelWidth")), "Scan")
    wide, high = get(scan, "PixelWidth"), get(scan, "PixelHeight")
    if wide:
        reading.take_pixel(
            lambda: quantity(wide, LENGTHS_NM, "m"), (lambda: quantity(high, LENGTHS_NM, "m")) if high else None
        )
        if columns := get("Image", "ResolutionX"):
            _require_width(reading, columns)
    beam = get("Beam", "Beam") or "EBeam"
    reading.take("voltage_kv", get("Beam", "HV") or get(beam, "HV"), lambda text: _kv(text, "V"))
    distance = get(beam, "WD") or get("Stage", "WorkingDistance")
    reading.take("working_distance_mm", distance, lambda text: _mm(text, "m"))
    reading.take("detector", get("Detectors", "Name"), name)
    reading.take("model", get("System", "SystemType"), name)
    reading.set("maker", "FEI" if "System" in sections or wide else None)
    field_m, display_m = get(scan, "HorFieldsize"), get("System", "DisplayWidth")
    if field_m and display_m:
        reading.take("magnification", field_m, lambda text: _enlarged_by(display_m, text))
    if date := get("User", "Date"):
        reading.take("acquired", get("User", "Time"), partial(moment, date))
    _fei_bar(get("Image", "ResolutionY"), get("PrivateFei", "DatabarHeight"), reading)


def _enlarged_by(display_m: str, field_m: str) -> float:
    across = quantity(field_m, LENGTHS_NM, "m")
    if across <= 0:
        raise ValueError(f'"{field_m}" is no width of a field')
    return within(quantity(display_m, LENGTHS_NM, "m") / across, 1e-3, 1e9, "magnification")


def _fei_bar(image_rows: str | None, bar_rows: str | None, reading: Reading) -> None:
    """ResolutionY is the height without the bar; a file of that very height was saved without it."""
    try:
        below = None if image_rows is None else reading.height - whole(image_rows)
        bar = None if bar_rows is None else whole(bar_rows)
    except ValueError as exc:
        return reading.warn(f"bar_rows is not read: {exc}")
    if below is not None and below < 0:
        return reading.warn(f"it is for {image_rows} rows, and the frame has {reading.height}; bar_rows is not used")
    if below is not None and bar is not None and below not in (0, bar):
        return reading.warn(f"bar_rows is not used: {bar} by DatabarHeight, {below} by ResolutionY")
    if below is not None or bar is not None:
        reading.take_bar(bar or 0 if below is None else below)
    return None


def read_tescan(sections: Sections, reading: Reading) -> None:
    """Tescan (TIFF tag 50431, or a side file .hdr): lengths in m, voltages in V."""
    values: dict[str, str] = {}
    for section in ("", "MAIN", "SEM"):
        values.update(sections.get(section, {}))
    get = values.get
    wide, high = get("PixelSizeX"), get("PixelSizeY")
    if wide:
        reading.take_pixel(
            lambda: quantity(wide, LENGTHS_NM, "m"), (lambda: quantity(high, LENGTHS_NM, "m")) if high else None
        )
    reading.take("magnification", get("Magnification"), _enlarged)
    reading.take("voltage_kv", get("HV"), lambda text: _kv(text, "V"))
    reading.take("working_distance_mm", get("WD"), lambda text: _mm(text, "m"))
    reading.take("detector", get("Detector"), name)
    reading.take("model", get("DeviceModel") or get("Device"), name)
    reading.set("maker", "Tescan" if wide or get("Device") else None)
    if date := get("Date"):
        reading.take("acquired", get("Time"), partial(moment, date))
    if strip := get("ImageStripSize"):
        try:
            reading.take_bar(whole(strip))
        except ValueError as exc:
            reading.warn(f"bar_rows is not read: {exc}")


def read_hitachi(values: Mapping[str, str], reading: Reading) -> None:
    """Hitachi (side file .txt, section SemImageFile): PixelSize in nm."""
    get = values.get
    if "PixelSize" in values:
        reading.take_pixel(lambda: quantity(values["PixelSize"], LENGTHS_NM, "nm"))
        if "DataSize" in values:
            _require_width(reading, values["DataSize"].lower().partition("x")[0])
    reading.take("magnification", get("Magnification"), _enlarged)
    reading.take("voltage_kv", get("AcceleratingVoltage"), _kv)
    reading.take("working_distance_mm", get("WorkingDistance"), _mm)
    reading.take("detector", get("SignalName"), name)
    reading.take("model", get("InstructName"), name)
    reading.set("maker", "Hitachi")
    if "Date" in values:
        reading.take("acquired", get("Time"), partial(moment, values["Date"]))


def read_jeol(text: str, reading: Reading) -> None:
    """JEOL (side file .txt): `$KEY value`. The scale bar is given in pixels, and as the length it stands for."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key.startswith("$"):
            values.setdefault(key.lstrip("$"), value.strip())
    get = values.get
    if "SM_MICRON_BAR" in values and "SM_MICRON_MARKER" in values:
        reading.take_pixel(lambda: _bar_scale(values["SM_MICRON_MARKER"], values["SM_MICRON_BAR"]))
    reading.take("magnification", get("CM_MAG"), _enlarged)
    reading.take("voltage_kv", get("CM_ACCEL_VOLT"), lambda text: _kv(text, "kV"))
    reading.take("working_distance_mm", get("SM_WD"), lambda text: _mm(text, "mm"))
    reading.take("detector", get("CM_DETECTOR_NAME") or get("CM_SIGNAL"), name)
    reading.take("model", get("CM_INSTRUMENT"), name)
    reading.set("maker", "JEOL")
    if "CM_DATE" in values:
        reading.take("acquired", get("CM_TIME"), partial(moment, values["CM_DATE"]))
    columns, _, rows = get("CM_FULL_SIZE", "").partition(" ")
    if columns and rows:
        _require_width(reading, columns)
        try:
            reading.take_bar(reading.height - whole(rows))
        except ValueError as exc:
            reading.warn(f"bar_rows is not read: {exc}")


def _bar_scale(length: str, pixels: str) -> float:
    return quantity(length, LENGTHS_NM) / whole(pixels, 1)


def _require_width(reading: Reading, columns: str) -> None:
    try:
        reading.require_width(whole(columns))
    except ValueError as exc:
        reading.warn(f"the width it is for is not read: {exc}")


def read_xml(text: str, reading: Reading) -> None:
    """XML of newer Thermo Fisher tools (`Metadata`) and of Phenom (`FeiImage`).

    A document type or an entity is refused before anything is parsed: small texts expand to large ones by them.
    """
    if _ENTITIES.search(text):
        return reading.warn("XML that declares a type or entities is not read")
    from xml.etree import ElementTree  # here, since few files have any

    try:
        root = ElementTree.fromstring(text.strip().rstrip("\0"))
    except (ElementTree.ParseError, ValueError) as exc:
        return reading.warn(f"its XML is damaged ({exc})")
    kind = root.tag.rpartition("}")[2]
    if kind == "FeiImage":
        _read_phenom(root, reading)
    elif kind == "Metadata":
        _read_thermo(root, reading)
    else:
        reading.warn(f'XML of the kind "{kind:.40}" is not known')
    return None


def _found(root: ElementTree.Element, path: str) -> tuple[str | None, str | None]:
    """The text of the first element at `path` (in any namespace), and its attribute `unit`."""
    node = root.find("/".join(f"{{*}}{part}" for part in path.split("/")))
    return (None, None) if node is None else ((node.text or "").strip() or None, node.get("unit"))


def _read_phenom(root: ElementTree.Element, reading: Reading) -> None:
    wide, high = _found(root, "pixelWidth"), _found(root, "pixelHeight")
    if wide[0]:
        reading.take_pixel(
            lambda: quantity(f"{wide[0]} {wide[1] or ''}", LENGTHS_NM),
            (lambda: quantity(f"{high[0]} {high[1] or ''}", LENGTHS_NM)) if high[0] else None,
        )
    scan = "acquisition/scan"
    volts, distance = _found(root, f"{scan}/highVoltage"), _found(root, "workingDistance")
    reading.take("voltage_kv", volts[0], lambda text: _kv(f"{text} {volts[1] or ''}"))
    reading.take("working_distance_mm", distance[0], lambda text: _mm(f"{text} {distance[1] or ''}"))
    reading.take("detector", _found(root, f"{scan}/detector")[0], name)
    reading.take("model", _found(root, "instrument/edition")[0] or _found(root, "instrument/type")[0], name)
    reading.set("maker", "Phenom")
    if rows := _found(root, "databarHeight")[0]:
        try:
            reading.take_bar(whole(rows))
        except ValueError as exc:
            reading.warn(f"bar_rows is not read: {exc}")


def _read_thermo(root: ElementTree.Element, reading: Reading) -> None:
    wide, high = _found(root, "BinaryResult/PixelSize/X"), _found(root, "BinaryResult/PixelSize/Y")
    if wide[0]:
        reading.take_pixel(
            lambda: quantity(f"{wide[0]} {wide[1] or ''}", LENGTHS_NM, "m"),
            (lambda: quantity(f"{high[0]} {high[1] or ''}", LENGTHS_NM, "m")) if high[0] else None,
        )
    reading.take("voltage_kv", _found(root, "Optics/AccelerationVoltage")[0], lambda text: _kv(text, "V"))
    reading.take("working_distance_mm", _found(root, "Optics/WorkingDistance")[0], lambda text: _mm(text, "m"))
    detector = _found(root, "Detectors/ScanningDetector/DetectorName")[0]
    reading.take("detector", detector or _found(root, "BinaryResult/Detector")[0], name)
    reading.take("model", _found(root, "Instrument/InstrumentClass")[0], name)
    reading.take("maker", _found(root, "Instrument/Manufacturer")[0], name)
    reading.take("acquired", _found(root, "Acquisition/AcquisitionDatetime")[0], iso_moment)

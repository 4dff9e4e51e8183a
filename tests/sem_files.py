"""Files as the makers of microscopes write them: tags of TIFF files, texts beside frames, and frames with text bars."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw

SIZE = (96, 128)
"""Rows and columns of the frames with tags."""
ZEISS = (
    "0\r\n0\r\n0\r\n7.343750e-009\r\n5.000000e+004\r\n"
    "DP_IMAGE_STORE\r\nStore resolution = 128 * 96\r\n"
    "DP_DETECTOR_TYPE\r\nDetector = InLens\r\nDP_SEM\r\nSem = Supra 40\r\n"
    "AP_MAG\r\nMag =   50.00 K X\r\nAP_WD\r\nWD =  2.8 mm\r\nAP_ACTUALKV\r\nEHT = 20.00 kV\r\n"
    "AP_PIXEL_SIZE\r\nPixel Size = 9.999 nm\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 7.344 nm\r\n"
    "AP_TIME\r\nTime :10:09:27\r\nAP_DATE\r\nDate :18 Jul 2019\r\n"
)
FEI = (
    "[User]\r\nDate=03/12/2019\r\nTime=10:22:13 PM\r\n\r\n[System]\r\nType=DualBeam\r\nSystemType=Helios G4 UX\r\n"
    "DisplayWidth=0.4\r\n\r\n[Beam]\r\nHV=5000\r\nBeam=EBeam\r\nScan=EScan\r\n\r\n[EBeam]\r\nHV=5000\r\n"
    "WD=0.00412\r\n\r\n[Scan]\r\nPixelWidth=2.0345e-009\r\nPixelHeight=2.5e-009\r\nHorFieldsize=2e-006\r\n\r\n"
    "[Image]\r\nResolutionX=128\r\nResolutionY=80\r\n\r\n[Detectors]\r\nNumber=1\r\nName=TLD\r\n\r\n"
    "[PrivateFei]\r\nBitShift=0\r\nDatabarHeight=16\r\n"
)
TESCAN = (
    "[MAIN]\r\nCompany=TESCAN\r\nDate=2019-03-12\r\nTime=10:22:13\r\nDevice=MIRA3\r\nDeviceModel=MIRA3 LMH\r\n"
    "ImageStripSize=20\r\nMagnification=5000.0\r\nPixelSizeX=4.1e-008\r\nPixelSizeY=4.2e-008\r\n"
    "[SEM]\r\nHV=15000.0\r\nWD=0.0100\r\nDetector=SE\r\n"
)
HITACHI = (
    "[SemImageFile]\r\nInstructName=SU8230\r\nImageName=a.tif\r\nDate=2019/03/12\r\nTime=10:22:13\r\n"
    "DataSize=128x96\r\nPixelSize=9.921875\r\nSignalName=SE(U)\r\nAcceleratingVoltage=15000 Volt\r\n"
    "Magnification=10000\r\nWorkingDistance=8100 um\r\n"
)
JEOL = (
    "$CM_FORMAT JEOL/SEM\n$CM_VERSION 1.0\n$CM_INSTRUMENT JSM-7800F\n$CM_SIGNAL SEI\n$CM_MAG 5000\n"
    "$CM_ACCEL_VOLT 15.00\n$CM_DATE 2019/03/12\n$CM_TIME 10:21:55\n$CM_FULL_SIZE 128 80\n"
    "$$SM_MICRON_BAR 20\n$$SM_MICRON_MARKER 1um\n$$SM_WD 10.0\n"
)
PHENOM = (
    '<?xml version="1.0"?><FeiImage version="1"><databarHeight>16</databarHeight><pixelWidth unit="um">0.02'
    '</pixelWidth><pixelHeight unit="um">0.02</pixelHeight><workingDistance unit="mm">6.5</workingDistance>'
    "<instrument><type>PW-100</type><edition>Phenom ProX</edition></instrument><acquisition><scan>"
    '<highVoltage unit="kV">-15</highVoltage><detector>BSD</detector></scan></acquisition></FeiImage>'
)
THERMO = (
    '<?xml version="1.0"?><Metadata xmlns="urn:thermo"><Instrument><Manufacturer>FEI Company</Manufacturer>'
    "<InstrumentClass>Apreo</InstrumentClass></Instrument><Acquisition><AcquisitionDatetime>"
    "2019-03-12T10:22:13+01:00</AcquisitionDatetime></Acquisition><Optics><AccelerationVoltage>2000"
    "</AccelerationVoltage><WorkingDistance>0.004</WorkingDistance></Optics><BinaryResult><PixelSize>"
    '<X unit="m">3e-9</X><Y unit="m">3e-9</Y></PixelSize><Detector>T1</Detector></BinaryResult></Metadata>'
)


def grey(height: int = SIZE[0], width: int = SIZE[1], seed: int = 0) -> np.ndarray:
    """A smooth image with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    hills = 120 + 40 * np.sin(rows / 17 + seed) * np.cos(columns / 23)
    return np.clip(hills + rng.normal(0, 6, (height, width)), 0, 255).astype(np.uint8)


def tiff(*tags: tuple[int, str | bytes], frame: np.ndarray | None = None, end: bytes = b"", **options: Any) -> bytes:
    """A TIFF file with text or bytes in tags, and bytes after its end."""
    file = io.BytesIO()
    extra = [(code, 2 if isinstance(value, str) else 7, 0, value, True) for code, value in tags]
    extra = [(code, kind, len(value), value, once) for code, kind, _, value, once in extra]
    tifffile.imwrite(
        file, grey() if frame is None else frame, photometric="minisblack", metadata=None, extratags=extra, **options
    )
    return file.getvalue() + end


def with_bar(
    frame: np.ndarray,
    rows: int,
    *,
    edge: str = "bottom",
    dark: bool = True,
    line: int = 0,
    left_over: int = 0,
    cells: bool = False,
) -> np.ndarray:
    """A frame with a text bar drawn over it: settings, a scale bar, perhaps a line between bar and image, or cells."""
    paper, ink = (0, 255) if dark else (255, 0)
    width = frame.shape[1]
    bar = Image.new("L", (width, rows), paper)
    draw = ImageDraw.Draw(bar)
    text = "EHT = 20.00 kV  WD = 2.8 mm  Signal A = InLens  Mag = 50.00 K X  Date: 18 Jul 2019"
    draw.text((4, max(1, rows // 2 - 6)), text, fill=ink)
    draw.line([(width - 60, rows - 4), (width - 8, rows - 4)], fill=ink, width=2)
    if line:
        draw.rectangle([(0, 0), (width, line - 1)], fill=ink)
    if cells:
        draw.rectangle([(0, 0), (width - 1, rows - 1)], outline=ink)
        draw.line([(0, rows // 4), (width, rows // 4)], fill=ink, width=2)
        for column in range(width // 4, width, width // 4):
            draw.line([(column, 0), (column, rows)], fill=ink)
    drawn = np.asarray(bar)
    drawn = drawn if edge == "bottom" else drawn[::-1]
    found = frame.copy()
    if edge == "bottom":
        found[found.shape[0] - rows - left_over : found.shape[0] - left_over] = drawn
    else:
        found[left_over : rows + left_over] = drawn
    return found

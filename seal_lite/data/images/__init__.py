"""Images read by region, so that a slide of any size never enters memory as a whole.

A plain image (JPEG, PNG) has one level and is decoded whole. TIFF, SVS and the like are read
through tifffile and tiffslide, an image of a SpatialData store (OME-Zarr) through zarr. What only
openslide knows (MRXS, DICOM, BIF, ...) is read by it, where it is installed.
"""

from seal_lite.data.images.colour import MIN_SATURATION, AnyImage, resized, tissue_mask, to_rgb
from seal_lite.data.images.formats import (
    IMAGE_SUFFIXES,
    PLAIN_SUFFIXES,
    UNREAD_SUFFIXES,
    is_hidden,
    open_image,
    open_slide,
    slides_kept_open,
)
from seal_lite.data.images.slide import Box, Slide
from seal_lite.data.images.vendors import (
    OPENSLIDE_REMEDY,
    VENDOR_SUFFIXES,
    dicom_series,
    has_openslide,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MIN_SATURATION",
    "OPENSLIDE_REMEDY",
    "PLAIN_SUFFIXES",
    "UNREAD_SUFFIXES",
    "VENDOR_SUFFIXES",
    "AnyImage",
    "Box",
    "Slide",
    "dicom_series",
    "has_openslide",
    "is_hidden",
    "open_image",
    "open_slide",
    "resized",
    "slides_kept_open",
    "tissue_mask",
    "to_rgb",
]

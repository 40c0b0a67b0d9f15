"""Sets as people have them, made list files: readers of their formats, and one way from there."""

from oltr_ext.data.importing.arrow import read_arrow
from oltr_ext.data.importing.coco import read_coco
from oltr_ext.data.importing.core import Imported, Plan, import_records
from oltr_ext.data.importing.folder import CLASS_BY, read_folder
from oltr_ext.data.importing.records import Notes, Record
from oltr_ext.data.importing.shards import read_shards
from oltr_ext.data.importing.table import read_table
from oltr_ext.data.importing.words import describe

__all__ = [
    "CLASS_BY",
    "Imported",
    "Notes",
    "Plan",
    "Record",
    "describe",
    "import_records",
    "read_arrow",
    "read_coco",
    "read_folder",
    "read_shards",
    "read_table",
]

"""Reading the user's files: readers, what columns mean, tokenising, what is dropped."""

from lit_pref.formats.drops import Drops, Unusable
from lit_pref.formats.encode import TextEncoder
from lit_pref.formats.load import Loaded, load_pairs, load_prompts
from lit_pref.formats.readers import Row, read_rows
from lit_pref.formats.records import Record, check_columns, parse_row

__all__ = [
    "Drops",
    "Loaded",
    "Record",
    "Row",
    "TextEncoder",
    "Unusable",
    "check_columns",
    "load_pairs",
    "load_prompts",
    "parse_row",
    "read_rows",
]

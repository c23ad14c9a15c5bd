"""Reading the user's files: readers, what columns mean, tokenising, what is dropped, the cache."""

from lit_pref.formats.columns import Layout, check_columns, find_layout
from lit_pref.formats.drops import Drops, Unusable
from lit_pref.formats.encode import TextEncoder
from lit_pref.formats.load import Loaded, load_groups, load_prompts
from lit_pref.formats.readers import Source, open_source, read_rows
from lit_pref.formats.reading import Outcome, Reading
from lit_pref.formats.records import Record, parse_row
from lit_pref.formats.rows import Row
from lit_pref.formats.store import Facts, GroupSequence, facts_of, prompt_key

__all__ = [
    "Drops",
    "Facts",
    "GroupSequence",
    "Layout",
    "Loaded",
    "Outcome",
    "Reading",
    "Record",
    "Row",
    "Source",
    "TextEncoder",
    "Unusable",
    "check_columns",
    "facts_of",
    "find_layout",
    "load_groups",
    "load_prompts",
    "open_source",
    "parse_row",
    "prompt_key",
    "read_rows",
]

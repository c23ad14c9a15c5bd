"""Whatever a file holds: a clear error or a counted drop; never NaN, a hang, or silence."""

import csv
import gzip
import io
import json
import math
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_pref.formats import Reading, TextEncoder, load_groups, load_prompts, open_source
from lit_pref.formats.survey import survey
from lit_pref.testing.tokenizer import byte_tokenizer
from lit_pref.types import Refusal

END, CONTEXT = 258, 80
ENCODERS = [
    TextEncoder(byte_tokenizer(), eos_ids=[END], context_length=CONTEXT),
    TextEncoder(
        byte_tokenizer(),
        eos_ids=[END],
        context_length=CONTEXT,
        max_prompt_tokens=40,
        max_response_tokens=5,
        long_prompts="keep_end",
    ),
]

texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "", " ", "a", "b", "<|im_end|>", "a<|im_start|>b", "\ud800", "\0", "x" * 300, "\u202e",
            "\x1b[31m", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c",
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", "\u2028", "e\u0301" * 9,
            "z" * 100_000, '[{"role": "user"}]', "NaN", "1e999",
        ]
    ),
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.just(10**400), st.just(10**5000)
)
roles = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "usr", ""])
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"role": roles, "content": texts}, optional={"name": st.one_of(st.none(), texts)}
        ),
        st.fixed_dictionaries({"from": roles, "value": texts}),
        st.dictionaries(texts, scalars, max_size=2),
        scalars,
    ),
    max_size=3,
)
ids = st.lists(st.one_of(st.integers(-1, 260), scalars), max_size=6)
good_ids = st.lists(st.integers(0, 258), min_size=1, max_size=6)
answers = st.lists(
    st.one_of(
        texts,
        messages,
        st.fixed_dictionaries(
            {"text": texts},
            optional={
                "ids": ids, "rank": scalars, "reward": st.floats(), "label": scalars,
                "behaviour_logps": st.lists(st.floats(), max_size=3), "finished": scalars,
            },
        ),
    ),
    max_size=4,
)  # fmt: skip
values = st.one_of(texts, messages, scalars, ids, answers, st.dictionaries(texts, texts))
NAMES = [
    "prompt", "chosen", "rejected", "completions", "responses", "completion", "rewards", "ranks",
    "label", "kto_tag", "reward", "margin", "weight", "system", "input", "history", "messages",
    "conversations", "instruction", "output", "prompt_ids", "chosen_ids", "rejected_ids",
    "completion_ids", "Prompt", "",
]  # fmt: skip
extras = {"margin": st.floats(), "weight": st.floats(), "score_chosen": scalars, "extra": values}
conversation = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}),
    max_size=4,
)
kinds = [
    st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts}, optional=extras),
    st.fixed_dictionaries({"chosen": texts, "rejected": texts}, optional=extras),
    st.fixed_dictionaries({"chosen": conversation, "rejected": conversation}),
    st.fixed_dictionaries({"prompt": values, "chosen": values, "rejected": values}),
    st.fixed_dictionaries({"prompt": texts, "completions": answers}, optional={"rewards": values}),
    st.fixed_dictionaries(
        {"prompt": texts, "completion": texts, "label": st.booleans()}, optional=extras
    ),
    st.fixed_dictionaries(
        {"instruction": texts, "output": texts}, optional={"input": texts, "system": texts}
    ),
    st.fixed_dictionaries({"conversations": messages}, optional={"kto_tag": scalars}),
    st.fixed_dictionaries(
        {"prompt_ids": good_ids, "chosen_ids": good_ids, "rejected_ids": good_ids}
    ),
    st.fixed_dictionaries({"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids}),
    st.dictionaries(st.sampled_from(NAMES), values, max_size=6),
]


def as_line(data):
    try:
        return json.dumps(data).encode()
    except ValueError:  # an integer of too many digits to be written; spell it out
        return b'{"prompt": 1' + b"0" * 5000 + b"}"


def of_one_kind(kind):
    return st.lists(kind, min_size=1, max_size=4)


rows = st.one_of(*map(of_one_kind, kinds), st.lists(st.one_of(*kinds), max_size=3))
jsonl = rows.map(lambda found: b"\n".join(map(as_line, found)))
wild = st.lists(st.one_of(rows.map(lambda r: b"".join(map(as_line, r))), st.binary(max_size=40)), max_size=3).map(b"\n".join)  # fmt: skip


def as_list(lines):
    return b"[" + lines.replace(b"\n", b",\n") + b"]"


def as_csv(found):
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in found for name in row)) or ["prompt"]
    writer = csv.DictWriter(text, fieldnames=names, restval="")
    writer.writeheader()
    for row in found:
        with suppress(ValueError, csv.Error):
            cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
            writer.writerow(cells)
    return text.getvalue().encode("utf-8", "surrogatepass")


files = st.one_of(
    jsonl.map(lambda content: ("f.jsonl", content)),
    jsonl.map(lambda content: ("f.json", as_list(content))),
    rows.map(lambda found: ("f.csv", as_csv(found))),
    jsonl.map(lambda content: ("f.jsonl.gz", gzip.compress(content, 1, mtime=0))),
    wild.map(lambda content: ("f.jsonl", content)),
    wild.map(lambda content: ("f.json", b"[" + content)),
    wild.map(lambda content: ("f.csv", content)),
    wild.map(lambda content: ("f.gz", b"\x1f\x8b" + content)),
)


@settings(
    max_examples=600,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(file=files, which=st.integers(0, 1))
def test_any_file_is_refused_or_counted_or_usable(tmp_path_factory, file, which):
    name, content = file
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    encoder = ENCODERS[which]
    for load in (load_groups, load_prompts):
        try:
            loaded = load(path, encoder=encoder, max_dropped=1.0)
        except Refusal as refusal:
            assert str(path) in str(refusal)  # noqa: PT017  (both outcomes are right)
            assert len(str(refusal)) < 2000  # noqa: PT017
            continue
        assert len(loaded.items) > 0
        assert len(loaded.items) + loaded.drops.dropped == loaded.drops.rows
        for item in loaded.items:
            prompt = item.prompt if load is load_groups else item
            assert 0 < len(prompt.ids) <= encoder.max_prompt_tokens
        if load is load_groups:
            assert_groups_are_sound(loaded.items, encoder)
            seen = survey(
                Reading(open_source(path), encoder=encoder, columns={}, want="responses"), rows=2
            )
            assert (seen.usable, len(seen.dropped)) == (len(loaded.items), loaded.drops.dropped)


def assert_groups_are_sound(groups, encoder):
    for group in groups:
        assert math.isfinite(group.weight) and group.weight >= 0
        assert group.margin is None or math.isfinite(group.margin)
        json.dumps(group.to_json(), ensure_ascii=False).encode()
        room = min(CONTEXT - len(group.prompt.ids), encoder.max_response_tokens or CONTEXT)
        assert group.responses
        if len(group.responses) > 1:
            assert len({tuple(r.ids) for r in group.responses}) > 1
        for response in group.responses:
            assert 0 < len(response.ids) <= room
            assert response.ids.count(END) == int(response.finished)
            assert response.text.strip() or not response.finished
            assert response.reward is None or math.isfinite(response.reward)
            logps = response.behaviour_logps
            assert logps is None or (
                len(logps) == len(response.ids) and all(map(math.isfinite, logps))
            )

"""Remote rewards and judges against a real server process that also misbehaves."""

import json
import logging
import multiprocessing

import pytest

pytest.importorskip("httpx", reason="extra [remote] is not installed")

from lit_pref.rewards import RemoteReward, RewardError, Scoring, checked_scores, make_judge
from lit_pref.rewards.cache import DiskCache
from lit_pref.rewards.comparing import checked_comparisons
from lit_pref.types import Group, Prompt, Refusal, Response

QUICK = {"timeout": 5.0, "retries": 2, "backoff": 0.01}


def group(prompt, *responses, id=0, **columns):
    return Group(
        prompt=Prompt(id=id, text=prompt, ids=[1], columns=columns),
        responses=[Response(ids=[0] * len(text), text=text) for text in responses],
    )


GROUPS = [group("p", "a", "bb", answer=1), group("q", "ccc", id=7)]


def remote(case, **settings):
    return RemoteReward(url=case.url, **{**QUICK, **settings})


# ------------------------------------------------------------------------------- remote


def test_scores_in_order_and_what_is_sent(service):
    case = service.case("ok")
    assert checked_scores(remote(case), GROUPS) == [1.0, 2.0, 3.0]
    (request,) = case.requests
    assert request["key"] is None
    assert request["body"] == {
        "prompts": ["p", "p", "q"],
        "responses": ["a", "bb", "ccc"],
        "columns": {"answer": [1, 1, None]},
    }


def test_a_bare_list_and_batches_and_no_columns(service):
    case = service.case("bare")
    reward = remote(case, batch_size=2, columns=False)
    assert checked_scores(reward, GROUPS) == [1.0, 2.0, 3.0]
    bodies = sorted((r["body"] for r in case.requests), key=lambda b: b["responses"])
    assert bodies == [
        {"prompts": ["p", "p"], "responses": ["a", "bb"]},
        {"prompts": ["q"], "responses": ["ccc"]},
    ]


@pytest.mark.parametrize(
    "trouble", ["500", "503", "429", "html", "short", "cut", "drop", "words", "nan"]
)
def test_a_passing_trouble_is_tried_again(service, trouble):
    case = service.case(f"{trouble},{trouble},ok")
    reward = remote(case)
    assert checked_scores(reward, GROUPS) == [1.0, 2.0, 3.0]
    assert len(case.requests) == 3
    assert reward.counts()["reward/retries"] == 2


def test_a_slow_answer_is_given_up_and_tried_again(service):
    case = service.case("slow,ok")
    assert checked_scores(remote(case, timeout=0.3), GROUPS) == [1.0, 2.0, 3.0]
    assert len(case.requests) == 2


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("500", "status 500"),
        ("html", r"expected JSON, got '<html>busy</html>'"),
        ("short", "expected 2 scores, one per response, got 1"),
        ("words", "expected finite numbers, got 'high'"),
        ("nan", "expected finite numbers, got nan"),
        ("cut", "RemoteProtocolError"),
        ("drop", "RemoteProtocolError|ReadError"),
        ("slow", r"no reply within 0.3 s"),
    ],
)
def test_a_lasting_trouble_names_reward_prompt_and_response(service, trouble, words):
    case = service.case(trouble)
    with pytest.raises(RewardError, match=words) as error:
        checked_scores(remote(case, timeout=0.3, retries=1), GROUPS[:1])
    message = str(error.value)
    assert "reward 'remote' (version 1) failed" in message
    assert "(2 tries)" in message
    assert "prompt (id 0): 'p'" in message
    assert message.endswith("response: 'a' (first of 2 in the request)")
    assert len(case.requests) == 2  # the culprit is not looked for with further requests


def test_nobody_listens():
    reward = RemoteReward(url="http://127.0.0.1:9/", **{**QUICK, "retries": 0})
    with pytest.raises(RewardError, match=r"ConnectError.*\(1 try\)"):
        checked_scores(reward, GROUPS)


def test_other_statuses_are_not_tried_again_and_the_key_is_never_shown(
    service, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv("SCORE_KEY", "sk-very-secret")
    case = service.case("401")
    reward = remote(case, api_key_env="SCORE_KEY", cache=str(tmp_path))
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(RewardError, match=r"status 401: 'no: Bearer \*\*\*'") as error,
    ):
        checked_scores(reward, GROUPS)
    assert [r["key"] for r in case.requests] == ["Bearer sk-very-secret"]
    assert "secret" not in str(error.value) + repr(error.value.__cause__) + caplog.text
    ok = remote(service.case("ok"), api_key_env="SCORE_KEY", cache=str(tmp_path))
    checked_scores(ok, GROUPS)
    kept = [f.read_text() for f in tmp_path.rglob("*.json")]
    assert len(kept) == 3
    assert "secret" not in "".join(kept)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "ftp://x"}, r"reward\.url"),
        ({"url": "http://user:pass@x/"}, "api_key_env"),
        ({"api_key_env": "sk-abc123"}, "NAME of an environment variable"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE .* is not set"),
        ({"timeout": 0}, r"reward\.timeout"),
        ({"retries": -1}, r"reward\.retries"),
        ({"backoff": -1}, r"reward\.backoff"),
        ({"concurrency": 0}, r"reward\.concurrency"),
        ({"batch_size": 0}, r"reward\.batch_size"),
        ({"cache": "/dev/null/x"}, r"reward\.cache"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(Refusal, match=words) as error:
        RemoteReward(**{"url": "http://x/", **settings})
    assert "sk-abc123" not in str(error.value)


# ------------------------------------------------------------------------------- at the same time


def test_many_small_calls_run_at_the_same_time_and_no_more_than_allowed(service):
    """The server answers only when 6 requests are there together: one after the other would fail."""
    case = service.case("gate6")
    reward = remote(case, concurrency=6, retries=0, timeout=30)
    groups = [group("p", "x" * (n + 1), id=n) for n in range(12)]
    with Scoring(reward) as scoring:
        for each in groups:
            scoring.add(each)
        scoring.finish()
    assert [g.responses[0].reward for g in groups] == [float(n + 1) for n in range(12)]
    assert groups[0].reward_source == "remote@1"
    stats = case.stats
    assert len(stats["requests"]) == 12
    assert stats["most"] == 6


def test_a_failure_gives_up_calls_that_hang(service):
    """Another call would take 2 s; it is cancelled, and the error comes at once."""
    bad, slow = service.case("400"), service.case("slow")

    class Both:
        name, version, concurrency = "both", "1", 2
        inner = (remote(bad, timeout=30), remote(slow, timeout=30))

        def score(self, groups):
            return self.inner[groups[0].prompt.id].score(groups)

    with pytest.raises(RewardError, match="status 400"), Scoring(Both()) as scoring:  # noqa: PT012
        scoring.add(group("p", "a", id=1))
        while not slow.requests:
            pass
        scoring.add(group("p", "a", id=0))
        scoring.finish()
    assert Both.inner[1].client.repeated == 0


# ------------------------------------------------------------------------------- cache


def test_answers_are_kept(service, tmp_path):
    case = service.case("ok")
    first = remote(case, cache=str(tmp_path))
    doubled = [*GROUPS, group("p", "a", "a", answer=1, id=3)]
    assert checked_scores(first, doubled) == [1.0, 2.0, 3.0, 1.0, 1.0]
    assert len(case.requests) == 1
    assert case.requests[0]["body"]["responses"] == ["a", "bb", "ccc"]  # equal ones once
    again = remote(case, cache=str(tmp_path))
    assert checked_scores(again, doubled) == [1.0, 2.0, 3.0, 1.0, 1.0]
    assert len(case.requests) == 1
    assert again.counts()["reward/cache_hits"] == 3


@pytest.mark.parametrize(
    "other",
    [
        {"version": "2"},
        {"name": "other"},
        {"columns": False},
        {"groups": [group("P", "a", answer=1)]},
        {"groups": [group("p", "A", answer=1)]},
        {"groups": [group("p", "a", answer=2)]},
        {"url": "?x"},
    ],
    ids=str,
)
def test_everything_that_matters_is_in_the_key(service, tmp_path, other):
    case = service.case("ok")
    checked_scores(remote(case, cache=str(tmp_path)), [group("p", "a", answer=1)])
    settings = dict(other)
    groups = settings.pop("groups", [group("p", "a", answer=1)])
    case.url += settings.pop("url", "")
    changed = remote(case, cache=str(tmp_path), **settings)
    checked_scores(changed, groups)
    assert len(case.requests) == 2
    assert changed.counts()["reward/cache_hits"] == 0


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"value": 9.0}', "changed", b"\xff\xfe"])
def test_damaged_entries_are_found_and_written_again(service, tmp_path, damage, caplog):
    case = service.case("ok")
    checked_scores(remote(case, cache=str(tmp_path)), [group("p", "abc")])
    (file,) = tmp_path.rglob("*.json")
    entry = json.loads(file.read_text())
    if damage == "changed":
        damage = json.dumps({**entry, "value": 99.0})
    file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    reward = remote(case, cache=str(tmp_path))
    assert checked_scores(reward, [group("p", "abc")]) == [3.0]
    assert len(case.requests) == 2
    assert reward.counts()["reward/cache_damaged"] == 1
    assert "damaged entry" in caplog.text
    assert json.loads(file.read_text()) == entry


def test_an_entry_of_another_question_is_no_answer(tmp_path):
    cache = DiskCache(str(tmp_path))
    one, two = DiskCache.key(a=1), DiskCache.key(a=2)
    cache.put(one, 1.0)
    cache.put(two, 2.0)
    cache._path(two).write_bytes(cache._path(one).read_bytes())
    assert cache.get(two) is None
    assert cache.get(one) == 1.0


def hammer(folder, start, out):
    cache = DiskCache(folder)
    wrong = 0
    start.wait()
    for turn in range(150):
        key = DiskCache.key(n=turn % 5)
        value = cache.get(key)
        wrong += value not in (None, [turn % 5] * 200)
        cache.put(key, [turn % 5] * 200)
    out.put((wrong, cache.damaged, cache.unwritten))


def test_several_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    start, out = context.Event(), context.Queue()
    workers = [context.Process(target=hammer, args=(str(tmp_path), start, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    assert [out.get(timeout=60) for _ in workers] == [(0, 0, 0)] * 3
    for worker in workers:
        worker.join(10)
    assert len(list(tmp_path.rglob("*.json"))) == 5
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(service, tmp_path, caplog):
    case = service.case("ok")
    reward = remote(case, cache=str(tmp_path / "cache"))
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file")
    assert checked_scores(reward, GROUPS) == [1.0, 2.0, 3.0]
    assert reward.cache.unwritten == 3
    assert caplog.text.count("cannot be written") == 1


# ------------------------------------------------------------------------------- judge


def pairwise(case, **settings):
    return make_judge(mode="pairwise", url=case.url, model="m", **{**QUICK, **settings})


def pointwise(case, **settings):
    return make_judge(mode="pointwise", url=case.url, model="m", **{**QUICK, **settings})


def test_pairwise_in_both_orders(service):
    case = service.case("ok")
    oracle = pairwise(case)
    compared = checked_comparisons(oracle, [group("p", "a", "bbb", "cc", "dd")])
    expected = [[0, 1, 0.0], [0, 2, 0.0], [0, 3, 0.0], [1, 2, 1.0], [1, 3, 1.0], [2, 3, 0.5]]
    assert compared == [expected]
    assert len(case.requests) == 12
    body = case.requests[0]["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 256)
    assert oracle.counts()["reward/undecided"] == 0
    # win shares: a 0 of 3, bbb 3 of 3, cc and dd 1.5 of 3
    assert checked_scores(oracle, [group("p", "a", "bbb", "cc", "dd")]) == [0.0, 1.0, 0.5, 0.5]


def test_a_verdict_that_follows_the_position_is_a_tie(service):
    case = service.case("biased")
    oracle = pairwise(case)
    assert checked_comparisons(oracle, [group("p", "a", "bbb")]) == [[[0, 1, 0.5]]]
    assert oracle.counts()["reward/undecided"] == 1


def test_drawn_positions_ask_once_and_do_not_depend_on_the_order(service):
    case = service.case("biased")
    oracle = pairwise(case, positions="drawn", retries=0)
    names = [f"response {n}" for n in range(8)]
    (there,) = checked_comparisons(oracle, [group("p", *names)])
    assert len(case.requests) == 28
    (back,) = checked_comparisons(oracle, [group("p", *reversed(names))])
    turned = {(7 - i, 7 - j): p for i, j, p in back}
    assert all(turned[j, i] == 1 - p for i, j, p in there)
    assert 5 < sum(p for _, _, p in there) < 23  # a fair coin of 28 draws


def test_opponents_bound_the_number_of_calls(service):
    case = service.case("ok")
    compared = checked_comparisons(
        pairwise(case, opponents=1), [group("p", "a", "bb", "ccc", "dddd")]
    )
    assert [c[:2] for c in compared[0]] == [[0, 1], [1, 2], [2, 3], [3, 0]]
    assert len(case.requests) == 8


def test_pointwise_marks_are_scaled(service):
    case = service.case("ok")
    reward = pointwise(case, marks=[0, 4])
    assert checked_scores(reward, [group("p", "a", "bbbb")]) == [0.25, 1.0]
    with pytest.raises(RewardError, match="mark 5 is not from 0 to 4"):
        checked_scores(reward, [group("p", "aaaaa")])


def test_braces_in_a_response_are_text(service):
    case = service.case("ok")
    checked_scores(pointwise(case), [group("{response}", "{prompt}")])
    text = case.requests[0]["body"]["messages"][0]["content"]
    assert "[Request]\n{response}\n" in text
    assert "[Response]\n{prompt}\n" in text


def test_chat_prompts_are_shown_with_roles(service):
    case = service.case("ok")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    checked_scores(pointwise(case), [group(messages, "abc")])
    text = case.requests[0]["body"]["messages"][0]["content"]
    assert "system: Be kind.\n\nuser: Hi" in text


@pytest.mark.parametrize("trouble", ["mumble", "shapeless", "500", "html"])
def test_judge_troubles_are_tried_again_then_stop(service, trouble):
    case = service.case(f"{trouble},ok")
    assert checked_comparisons(pairwise(case, positions="drawn"), [group("p", "a", "bb")])
    assert len(case.requests) == 2
    with pytest.raises(RewardError, match=r"against: '(a|bb)'") as error:
        checked_comparisons(pairwise(service.case(trouble)), [group("p", "a", "bb")])
    assert "reward 'judge:m'" in str(error.value)
    assert "prompt (id 0): 'p'" in str(error.value)


def test_unclear_answers_can_be_counted_instead(service, tmp_path):
    oracle = pairwise(service.case("mumble"), unclear=0.5, retries=0)
    assert checked_comparisons(oracle, [group("p", "a", "bb")]) == [[[0, 1, 0.5]]]
    assert oracle.counts()["reward/unclear"] == 2
    reward = pointwise(service.case("mumble"), unclear=0.0, retries=0, cache=str(tmp_path))
    assert checked_scores(reward, [group("p", "a")]) == [0.0]
    assert not list(tmp_path.rglob("*.json"))  # it may be clear the next time
    failing = pairwise(service.case("500"), unclear=0.5, retries=0)
    with pytest.raises(RewardError):  # no answer is not an unclear one
        checked_comparisons(failing, [group("p", "a", "bb")])


def test_judge_answers_are_kept_by_everything_that_is_asked(service, tmp_path):
    case = service.case("ok")
    groups = [group("p", "a", "bb")]
    kept = {"cache": str(tmp_path)}
    checked_comparisons(pairwise(case, **kept), groups)
    checked_comparisons(pairwise(case, **kept), groups)
    assert len(case.requests) == 2
    for other in ({"version": "2"}, {"temperature": 1.0}, {"max_tokens": 9},
                  {"instructions": "{prompt} [Response A]\n{first}\n\n[Response B]\n{second}\n\nSay in?"}):  # fmt: skip
        before = len(case.requests)
        checked_comparisons(pairwise(case, **kept, **other), groups)
        assert len(case.requests) == before + 2, other
    other_model = make_judge(mode="pairwise", url=case.url, model="n", **QUICK, **kept)
    checked_comparisons(other_model, groups)
    assert len(case.requests) == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "listwise"}, r"reward\.mode"),
        ({"positions": "one"}, r"reward\.positions"),
        ({"instructions": "{prompt} {first}"}, r"\{second\} is missing"),
        ({"mode": "pointwise", "marks": [3, 3]}, r"reward\.marks"),
        ({"unclear": 2}, r"reward\.unclear"),
        ({"unclear": 0.2}, r"reward\.unclear is 0\.5 .*favour the response"),
        ({"opponents": 0}, r"reward\.opponents"),
    ],
)
def test_judge_refusals(settings, words):
    with pytest.raises(Refusal, match=words):
        make_judge(**{"mode": "pairwise", "url": "http://x/v1", "model": "m", **settings})

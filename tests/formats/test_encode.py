import pytest

from lit_pref.formats import TextEncoder, Unusable
from lit_pref.testing.tokenizer import byte_tokenizer
from lit_pref.types import Refusal

START, END = 257, 258  # of the byte tokenizer, whose other ids are bytes


def ids(text):
    return list(text.encode())


def test_a_string_is_one_user_message_of_the_template(chat_encoder):
    expected = [START, *ids("user\nhi"), END, *ids("\n"), START, *ids("assistant\n")]
    assert chat_encoder.encode_prompt("hi") == expected
    assert chat_encoder.encode_prompt([{"role": "user", "content": "hi"}]) == expected


def test_messages_keep_their_roles(chat_encoder):
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    expected = [START, *ids("system\nbe"), END, *ids("\n"), *chat_encoder.encode_prompt("hi")]
    assert chat_encoder.encode_prompt(messages) == expected


def test_a_response_is_tokenised_alone_and_ends_once(chat_encoder):
    assert chat_encoder.encode_response("yes") == [*ids("yes"), END]
    assert chat_encoder.encode_response([{"role": "assistant", "content": "yes"}]) == [
        *ids("yes"),
        END,
    ]
    assert chat_encoder.encode_response("yes<|im_end|><|im_end|>") == [*ids("yes"), END]
    with pytest.raises(Unusable, match="inside a response"):
        chat_encoder.encode_response("yes<|im_end|>no")


@pytest.mark.parametrize("text", ["", " \n", "<|im_end|>", "<|pad|>", []])
def test_empty_responses_are_unusable(chat_encoder, text):
    with pytest.raises(Unusable, match="empty response"):
        chat_encoder.encode_response(text)


@pytest.mark.parametrize("text", ["", " \n", [], [{"role": "user", "content": ""}]])
def test_empty_prompts_are_unusable(chat_encoder, text):
    with pytest.raises(Unusable, match="empty prompt"):
        chat_encoder.encode_prompt(text)


def test_decoding_skips_special_tokens_and_keeps_spaces(chat_encoder):
    text = "a , b .  caf\u00e9 \U0001f600"
    assert chat_encoder.decode(chat_encoder.encode_response(text)) == text
    assert chat_encoder.decode([START, *ids("a"), END]) == "a"
    assert chat_encoder.decode([]) == ""


@pytest.mark.parametrize("post", ["none", "bos", "bos_eos"])
def test_plain_prompts_have_one_bos_if_the_tokenizer_adds_one_and_no_eos(
    make_plain_tokenizer, post
):
    tokenizer = make_plain_tokenizer(post=post)
    encoder = TextEncoder(tokenizer, eos_ids=[257], context_length=60)
    body = tokenizer("hi", add_special_tokens=False)["input_ids"]
    bos = [] if post == "none" else [256]
    assert encoder.encode_prompt("hi") == bos + body
    assert encoder.encode_prompt("<s>hi") == [256, *body]
    assert encoder.encode_prompt("<s><s>hi") == [256, *body]
    assert encoder.encode_response("hi") == [*body, 257]


def test_a_template_that_writes_bos_twice_leaves_one(make_plain_tokenizer):
    tokenizer = make_plain_tokenizer(post="bos")
    tokenizer.chat_template = "{{ '<s><s>' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    encoder = TextEncoder(tokenizer, eos_ids=[257], context_length=60)
    assert encoder.encode_prompt("h").count(256) == 1


def test_messages_without_a_template_are_refused(plain_encoder):
    message = [{"role": "user", "content": "hi"}]
    with pytest.raises(Refusal, match="no chat template"):
        plain_encoder.encode_prompt(message)
    with pytest.raises(Refusal, match="no chat template"):
        plain_encoder.encode_response([{"role": "assistant", "content": "hi"}])


def test_a_template_that_rejects_the_roles_is_a_refusal(make_plain_tokenizer):
    tokenizer = make_plain_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    encoder = TextEncoder(tokenizer, eos_ids=[257], context_length=60)
    with pytest.raises(Refusal, match=r"roles system, user \(no system\)"):
        encoder.encode_prompt(
            [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        )


def test_the_template_decides_which_end_token_ends_a_turn(make_plain_tokenizer):
    # As in Gemma: the tokenizer's own end is </s> (257), a turn ends with <end_of_turn> (258).
    tokenizer = make_plain_tokenizer(post="bos")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
        "{{ '<end_of_turn>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert TextEncoder(tokenizer, eos_ids=[257, 258], context_length=60).eos_id == 258
    tokenizer.chat_template = None
    assert TextEncoder(tokenizer, eos_ids=[258, 257], context_length=60).eos_id == 257
    assert TextEncoder(tokenizer, eos_ids=[258], context_length=60).eos_id == 258


def test_long_prompts_are_unusable_and_long_responses_are_cut():
    encoder = TextEncoder(
        byte_tokenizer(),
        eos_ids=[END],
        context_length=100,
        max_prompt_tokens=27,
        max_response_tokens=4,
    )
    # ChatML around a prompt of n bytes: 1 + 5 + n + 1 + 1 + 1 + 10 tokens.
    assert len(encoder.encode_prompt("12345678")) == 27
    with pytest.raises(Unusable, match="prompt longer than 27 tokens"):
        encoder.encode_prompt("123456789")
    whole, cut = encoder.encode_response("123"), encoder.encode_response("1234")
    assert whole == [*ids("123"), END]
    assert cut == ids("1234")  # with its end it would be five tokens
    assert encoder.finished(whole)
    assert not encoder.finished(cut)


def test_the_context_cuts_responses_too(chat_encoder):
    # 200 tokens of context less 197 of prompt leave three, the end included.
    assert chat_encoder.encode_response("ab", prompt_length=197) == [*ids("ab"), END]
    assert chat_encoder.encode_response("abc", prompt_length=197) == ids("abc")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eos_ids": []}, "no end-of-sequence token"),
        ({"max_prompt_tokens": 0}, "Expected 1 to 99"),
        ({"max_prompt_tokens": 100}, "Expected 1 to 99"),
        ({"max_response_tokens": 0}, "Expected at least 1"),
    ],
)
def test_limits_without_room_are_refused(changes, says):
    with pytest.raises(Refusal, match=says):
        TextEncoder(byte_tokenizer(), **{"eos_ids": [END], "context_length": 100, **changes})

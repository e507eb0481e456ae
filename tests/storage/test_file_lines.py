"""Sealed lines tell what was written from what wasn't, and a torn end from damage."""

import orjson
import pytest

from agentstate.storage.file.lines import is_torn, read_lines, seal, unseal

BODIES = [orjson.dumps({"n": n, "ops": [{"op": "commit", "text": "ä" * n}]}) for n in range(1, 5)]


def chain(bodies=BODIES):
    """Return a file of these lines."""
    data, after = b"", ""
    for body in bodies:
        line, after = seal(body, after)
        data += line
    return data


def test_lines_come_back():
    """Every line of a chain comes back, with its end and digest."""
    data = chain()
    lines = read_lines(data, "")
    assert [line.body["n"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1].end == len(data)
    assert read_lines(data[lines[1].end :], lines[1].sum, start=lines[1].end) == lines[2:]


def test_a_line_is_json():
    """A line can be read by any JSON parser."""
    assert orjson.loads(chain().splitlines()[0])["n"] == 1


@pytest.mark.parametrize("change", ["lost", "moved", "repeated", "foreign"])
def test_the_chain_breaks(change):
    """A line that is lost, moved, repeated or of another file is noticed."""
    one, two, three, four = chain().splitlines(keepends=True)
    foreign = seal(BODIES[1])[0]
    changed = {
        "lost": [one, three, four],
        "moved": [one, three, two, four],
        "repeated": [one, two, two, three, four],
        "foreign": [one, foreign, three, four],
    }[change]
    assert len(read_lines(b"".join(changed), "")) <= 2


def test_every_flip_is_noticed():
    """Whatever single bit is flipped, the line isn't read as written, nor taken for a torn end."""
    data = chain()
    for at in range(len(data)):
        for bit in range(8):
            spoiled = bytearray(data)
            spoiled[at] ^= 1 << bit
            lines = read_lines(bytes(spoiled), "")
            assert len(lines) < len(BODIES)
            end = lines[-1].end if lines else 0
            assert not is_torn(bytes(spoiled[end:]), end), (at, bit)


def test_every_byte_replaced_is_noticed():
    """A byte that became NUL, a line end or something else is damage, not a torn end."""
    data = chain()
    for at in range(len(data)):
        for byte in (0, 10, 34, 48, 255):
            if data[at] == byte:
                continue
            spoiled = data[:at] + bytes([byte]) + data[at + 1 :]
            lines = read_lines(spoiled, "")
            end = lines[-1].end if lines else 0
            assert not is_torn(spoiled[end:], end), (at, byte)


def test_torn_at_every_byte():
    """A last line cut at any byte is torn, and the lines before it are whole."""
    data = chain()
    start = read_lines(data, "")[2].end
    for end in range(start + 1, len(data)):
        lines = read_lines(data[:end], "")
        assert len(lines) == 3
        assert is_torn(data[start:end], start), end


@pytest.mark.parametrize(
    ("start", "holes"),
    [(700, [(700, 1024)]), (700, [(1024, 1536)]), (700, [(1536, 2560)]), (512, [(512, 1024), (1536, 2048)])],
)
def test_unwritten_blocks_are_torn(start, holes):
    """A last line in which whole blocks were never written, as after a loss of power, is torn."""
    line = seal(orjson.dumps({"n": 1, "text": "x" * 2000}))[0]
    data = bytearray(b"y" * start + line)
    for low, high in holes:
        data[low:high] = bytes(len(data[low:high]))
    assert is_torn(bytes(data[start:]), start)


def test_unwritten_blocks_before_a_good_line_are_damage():
    """Blocks that vanished from the middle are damage: what follows was written later."""
    line = seal(orjson.dumps({"n": 1, "text": "x" * 2000}))[0]
    data = bytearray(line + line)
    data[512:1024] = bytes(512)
    assert not is_torn(bytes(data), 0)


def test_unseal_refuses_what_is_no_line():
    """Garbage, an empty line and JSON of other kinds are no lines."""
    for garbage in (b"", b"{}", b"[1]", b'{"sum":"x","len":1,', b'{"sum":"0123456789abcdef","len":2,"a":1}'):
        assert unseal(garbage) is None

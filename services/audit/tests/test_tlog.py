"""The log's mathematics against RFC 6962, a brute-force reference, and vectors made by Go's sumdb (`tlog`, `note`)."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelworks.audit.tlog import proofs
from modelworks.audit.tlog.hashes import EMPTY_ROOT, leaf_hash, node_hash
from modelworks.audit.tlog.note import (
    SignedCheckpoint,
    Signer,
    VerificationError,
    Verifier,
    generate_key,
    open_checkpoint,
    sign_checkpoint,
)
from modelworks.audit.tlog.proofs import (
    Hashes,
    plan_consistency,
    plan_inclusion,
    tiles_for,
    verify_consistency,
    verify_inclusion,
)
from modelworks.audit.tlog.tiles import (
    Bundle,
    Tile,
    decode_entries,
    decode_hashes,
    encode_entries,
    parse_path,
)
from modelworks.audit.tlog.tree import Edge, edge_of, edge_tiles

GO: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "go_tlog.json").read_text())
SIGNER = Signer(generate_key("test/log"))

CT_LEAVES = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    bytes(range(0x50, 0x58)),
    bytes(range(0x60, 0x70)),
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Of Certificate Transparency's own test suite, for trees of 1 to 8 leaves."""


def entries(count: int) -> list[bytes]:
    return [f"entry {i}".encode() for i in range(count)]


def brute_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(brute_root(leaves[:k]), brute_root(leaves[k:]))


def brute_path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if index < k:
        return [*brute_path(index, leaves[:k]), brute_root(leaves[k:])]
    return [*brute_path(index - k, leaves[k:]), brute_root(leaves[:k])]


def brute_consistency(old: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [brute_root(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if old <= k:
        return [*brute_consistency(old, leaves[:k], whole), brute_root(leaves[k:])]
    return [*brute_consistency(old - k, leaves[k:], False), brute_root(leaves[:k])]


class Log:
    """A log in memory, with the tiles that appending wrote."""

    def __init__(self, *batches: list[bytes]) -> None:
        self.edge, self.tiles = Edge(), dict[Tile, bytes]()
        for batch in batches:
            self.edge, added = self.edge.append(batch)
            self.tiles.update(added)

    def prove(self, spans: list[proofs.Span], size: int) -> list[bytes]:
        wanted = tiles_for(spans, size)
        return [Hashes({t: decode_hashes(self.tiles[t]) for t in wanted}).of(span) for span in spans]


def signed(size: int, root: bytes, signer: Signer = SIGNER) -> SignedCheckpoint:
    return sign_checkpoint(signer, size=size, root=root)


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size: int):
    edge, _ = Edge().append(CT_LEAVES[:size])

    assert edge.root.hex() == CT_ROOTS[size - 1]


def test_empty_tree_has_the_hash_of_nothing():
    assert Edge().root == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", [int(size) for size in GO["roots"]])
def test_roots_are_those_of_go(size: int):
    edge, _ = Edge().append(entries(size))

    assert edge.root.hex() == GO["roots"][str(size)]


def test_inclusion_proofs_are_those_of_go():
    log = Log(*[[entry] for entry in entries(513)])

    assert len(GO["inclusion"]) > 50
    for vector in GO["inclusion"]:
        spans = plan_inclusion(vector["index"], vector["size"])
        assert [h.hex() for h in log.prove(spans, vector["size"])] == vector["hashes"]


def test_consistency_proofs_are_those_of_go():
    log = Log(*[[entry] for entry in entries(513)])

    assert len(GO["consistency"]) > 50
    for vector in GO["consistency"]:
        spans = plan_consistency(vector["old"], vector["new"])
        assert [h.hex() for h in log.prove(spans, vector["new"])] == vector["hashes"]


def test_note_signed_by_go_opens_and_a_key_of_go_signs_the_same():
    checkpoint = open_checkpoint(GO["note"], Verifier.parse(GO["vkey"]))

    assert (checkpoint.size, checkpoint.root.hex()) == (513, GO["roots"]["513"])
    signer = Signer(GO["skey"])
    assert signer.verifier.vkey == GO["vkey"]
    assert signed(513, checkpoint.root, signer).note == GO["note"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=5))
def test_batches_of_any_size_give_the_brute_force_root_and_tiles(sizes: list[int]):
    leaves = entries(sum(sizes))
    batches, at = [], 0
    for size in sizes:
        batches.append(leaves[at : at + size])
        at += size

    log = Log(*batches)

    assert log.edge.root == brute_root(leaves)
    for tile in {tile for tile in edge_tiles(len(leaves)) if tile}:
        assert tile in log.tiles
    for tile, data in log.tiles.items():
        width = 256**tile.level
        first = tile.number * 256 * width
        expected = [brute_root(leaves[first + i * width : first + (i + 1) * width]) for i in range(tile.width)]
        assert decode_hashes(data) == expected


def test_every_proof_of_small_trees_is_the_brute_force_one_and_verifies():
    leaves = entries(40)
    log = Log(*[[leaf] for leaf in leaves])
    roots = [brute_root(leaves[:n]) for n in range(len(leaves) + 1)]

    for size in range(1, len(leaves) + 1):
        head = signed(size, roots[size])
        for index in range(size):
            proof = log.prove(plan_inclusion(index, size), size)
            assert proof == brute_path(index, leaves[:size])
            verify_inclusion(leaves[index], index, proof, head)
        for old in range(1, size + 1):
            proof = log.prove(plan_consistency(old, size), size)
            assert proof == brute_consistency(old, leaves[:size])
            verify_consistency(proof, signed(old, roots[old]), head)


def test_tree_of_three_tile_levels_proves_its_first_and_last_leaf():
    leaves = [i.to_bytes(4, "big") for i in range(70_000)]
    log = Log(leaves[:30_000], leaves[30_000:])
    head = signed(len(leaves), log.edge.root)

    assert [len(level) for level in log.edge.levels] == [70_000 % 256, (70_000 >> 8) % 256, 1]
    for index in (0, 255, 256, 65_535, 65_536, 69_999):
        verify_inclusion(leaves[index], index, log.prove(plan_inclusion(index, 70_000), 70_000), head)
    middle, _ = Edge().append(leaves[:65_537])
    proof = log.prove(plan_consistency(65_537, 70_000), 70_000)
    verify_consistency(proof, signed(65_537, middle.root), head)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_altered_inclusion_proof_is_refused(data: st.DataObject):
    size = data.draw(st.integers(2, 40))
    index = data.draw(st.integers(0, size - 1))
    leaves = entries(size)
    log = Log(leaves)
    proof, head = log.prove(plan_inclusion(index, size), size), signed(size, log.edge.root)
    at = data.draw(st.integers(0, len(proof) - 1))
    flipped = [bytes([h[0] ^ 1]) + h[1:] if i == at else h for i, h in enumerate(proof)]

    for entry, number, hashes in (
        (leaves[index] + b"!", index, proof),
        (leaves[index], (index + 1) % size, proof),
        (leaves[index], index, flipped),
        (leaves[index], index, proof[:-1]),
        (leaves[index], index, [*proof, proof[-1]]),
        (leaves[index], size, proof),
        (leaves[index], -1, proof),
        (leaves[index], index, proof * 100),
    ):
        with pytest.raises(VerificationError):
            verify_inclusion(entry, number, hashes, head)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_consistency_of_an_altered_log_is_refused(data: st.DataObject):
    new = data.draw(st.integers(2, 40))
    old = data.draw(st.integers(1, new - 1))
    altered = data.draw(st.integers(0, old - 1))
    leaves = entries(new)
    other = [b"altered" if i == altered else leaf for i, leaf in enumerate(leaves)]
    proof = Log(other).prove(plan_consistency(old, new), new)

    with pytest.raises(VerificationError, match="does not start with"):
        verify_consistency(proof, signed(old, brute_root(leaves[:old])), signed(new, brute_root(other)))


def test_consistency_refuses_shrinking_forks_and_foreign_logs():
    one, two = signed(2, b"\x01" * 32), signed(2, b"\x02" * 32)

    with pytest.raises(VerificationError, match="two different trees"):
        verify_consistency([], one, two)
    with pytest.raises(VerificationError, match="shrank from 3 to 2"):
        verify_consistency([], signed(3, b"\x01" * 32), one)
    with pytest.raises(VerificationError, match="two logs"):
        verify_consistency([], one, signed(2, b"\x01" * 32, Signer(generate_key("other"))))
    with pytest.raises(VerificationError, match="does not start"):
        verify_consistency([], one, signed(3, b"\x03" * 32))
    with pytest.raises(VerificationError, match="two different trees"):
        verify_consistency([b"\x00" * 32], one, one)


def test_proof_cannot_be_checked_without_a_signed_checkpoint():
    """INVARIANT: a checkpoint is made by verifying a signature or by signing; an unsigned root proves nothing."""
    with pytest.raises(VerificationError, match="signed note"):
        SignedCheckpoint("test/log", 1, leaf_hash(b"x"), "", object())


ALTERED_NOTES = {
    "another size": lambda note: note.replace("\n513\n", "\n514\n"),
    "another root": lambda note: note.replace("\n513\n", "\n513\nAAAA"),
    "another origin": lambda note: note.replace("modelworks.test", "modelworks.fake"),
    "no signature": lambda note: note.split("\n\n")[0] + "\n",
    "an empty signature block": lambda note: note.split("\n\n")[0] + "\n\n",
    "a broken signature": lambda note: note[:-6] + "AAAA" + note[-2:],
    "a signature that is not base64": lambda note: note[:-6] + "!!!!!\n",
    "no last newline": lambda note: note[:-1],
    "text among the signatures": lambda note: note + "and more\n",
    "nothing": lambda note: "",
    "too much": lambda note: "x" * 20_000,
}


@pytest.mark.parametrize("change", ALTERED_NOTES.values(), ids=ALTERED_NOTES)
def test_altered_checkpoint_is_refused(change: Any):
    with pytest.raises(VerificationError):
        open_checkpoint(change(GO["note"]), Verifier.parse(GO["vkey"]))


def test_checkpoint_of_another_key_with_the_same_name_is_refused():
    stranger = Signer(generate_key("modelworks.test/audit"))

    with pytest.raises(VerificationError, match="is not signed by"):
        open_checkpoint(GO["note"], stranger.verifier)


def test_checkpoint_may_carry_the_signature_of_a_witness_too():
    witness = Signer(generate_key("witness"))
    text = GO["note"].split("\n\n")[0] + "\n"
    cosigned = GO["note"] + witness.sign(text).split("\n\n")[1]

    assert open_checkpoint(cosigned, Verifier.parse(GO["vkey"])).size == 513
    assert witness.verifier.open(cosigned) == text


@pytest.mark.parametrize(
    "text",
    ["log\n-1\nAAAA\n", "log\n01\nAAAA\n", "log\n1\n!!\n", "log\n1\nAAAA\n", "log\n", "log\n0\n" + "A" * 43 + "=\n"],
)
def test_signed_text_that_is_no_checkpoint_is_refused(text: str):
    signer = Signer(generate_key("log"))

    with pytest.raises(VerificationError):
        open_checkpoint(signer.sign(text), signer.verifier)


@pytest.mark.parametrize(
    "change",
    [lambda k: k[:-4], lambda k: k.replace("audit+", "other+"), lambda k: "", lambda k: "a+b", lambda k: k + "AAAA"],
)
def test_altered_keys_are_refused(change: Any):
    with pytest.raises(VerificationError):
        Verifier.parse(change(GO["vkey"]))
    with pytest.raises(VerificationError):
        Signer(change(GO["skey"]))


def test_message_about_a_bad_signer_key_does_not_repeat_it():
    secret = GO["skey"][:-4]

    with pytest.raises(VerificationError) as refused:
        Signer(secret)

    assert secret.rsplit("+", maxsplit=1)[-1][:12] not in str(refused.value)
    assert secret not in repr(Signer(GO["skey"]))


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "x" * 201])
def test_key_names_that_a_note_cannot_carry_are_refused(name: str):
    with pytest.raises(VerificationError):
        generate_key(name)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(1, 1_234_067), "tile/1/x001/x234/067"),
        (Tile(2, 5, 17), "tile/2/005.p/17"),
        (Bundle(999), "tile/entries/999"),
        (Bundle(1000, 255), "tile/entries/x001/000.p/255"),
    ],
)
def test_tile_paths_are_those_of_c2sp(tile: Tile | Bundle, path: str):
    assert tile.path == path
    assert parse_path(path) == tile


@pytest.mark.parametrize(
    "path",
    ["", "checkpoint", "tile/64/000", "tile/00/000", "tile/0/0", "tile/0/x000/001", "tile/0/000.p/0", "tile/0/000.p/256",
     "tile/0/000.p/300", "tile/entries/../../x", "tile/0/000/", "tile/0/1000", "tile/-1/000", "tile/0/000.p/01"],
)  # fmt: skip
def test_other_paths_are_refused(path: str):
    with pytest.raises(ValueError, match=r"tile|written"):
        parse_path(path)


def test_bundle_keeps_entries_of_all_lengths_and_refuses_one_that_is_too_long():
    kept = [b"", b"x" * 65_535, b"last"]

    assert decode_entries(encode_entries(kept)) == kept
    with pytest.raises(ValueError, match="65536"):
        encode_entries([b"x" * 65_536])


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_cut_bundle_is_refused(cut: int):
    with pytest.raises(ValueError, match="ends within entry 1"):
        decode_entries(encode_entries([b"one", b"three"])[:-cut])


def test_edge_is_refused_when_a_tile_has_another_width():
    edge, _ = Edge().append(entries(300))

    assert edge_of(300, edge.levels) == edge
    with pytest.raises(ValueError, match="needs"):
        edge_of(301, edge.levels)


@pytest.mark.parametrize("data", [b"x", b"x" * 33, b"x" * 32 * 257])
def test_damaged_tile_is_refused(data: bytes):
    with pytest.raises(ValueError, match="up to 256 hashes"):
        decode_hashes(data)


def test_root_of_a_checkpoint_is_base64_of_32_bytes():
    head = signed(3, b"\x07" * 32)

    assert head.note.split("\n")[2] == base64.b64encode(b"\x07" * 32).decode()

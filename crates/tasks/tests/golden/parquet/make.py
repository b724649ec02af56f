"""Parquet files and their rows, for the tests of `read::parquet`.

    pip install pyarrow==26.0.1
    python make.py
"""
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent

CHATS = [
    {
        "id": i,
        "messages": [
            {"role": "user", "content": f"What is {i} plus {i}?"},
            {"role": "assistant", "content": f"{i + i}, naïvely 漢字"},
        ]
        * (1 + i % 3),
    }
    for i in range(40)
]
MIXED = [
    {
        "text": ["one", "", None, "four\n\"x\""][i % 4],
        "label": i % 3,
        "big": 2**40 + i if i % 2 else None,
        "score": i / 8,
        "single": 0.1 * i,
        "yes": i % 2 == 0,
        "tags": [None, [], ["a"], ["b", None, "c"]][i % 4],
        "place": {"city": f"c{i}", "at": [i, i + 1]},
    }
    for i in range(50)
]


def write(name, rows, schema=None, **options):
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, HERE / f"{name}.parquet", **options)
    return table.to_pylist()


def main():
    mixed = pa.schema([
        ("text", pa.string()), ("label", pa.int32()), ("big", pa.int64()), ("score", pa.float64()),
        ("single", pa.float32()), ("yes", pa.bool_()), ("tags", pa.list_(pa.string())),
        ("place", pa.struct([("city", pa.large_string()), ("at", pa.list_(pa.uint8()))])),
    ])
    write("chats", CHATS, compression="zstd", row_group_size=16)
    write("mixed", MIXED, mixed, compression="snappy", row_group_size=20)
    write("gzip", MIXED[:3], mixed, compression="gzip", use_dictionary=False, data_page_version="2.0")
    write("lz4", MIXED[:3], mixed, compression="lz4")
    write("blob", [{"text": "x", "image": b"\xff\xfe"}, {"text": "y", "image": b"\xff"}])
    write("nan", [{"x": 1.5}, {"x": float("nan")}])
    (HERE / "rows.json").write_text(
        json.dumps({"chats": CHATS, "mixed": MIXED}, ensure_ascii=False) + "\n"
    )


main()

"""Files as rows: delimited text, JSON lines and Parquet, each row with its location.

```
delimited.py        CSV and TSV -> rows          json_lines.py   JSON lines -> objects
rows.py             rows -> batches of notes     hashing.py      hashes that never change
working_folder.py   temporary files              hints.py        wording shared by errors
```
"""

"""ICD codes -> the classes of a label space.

A code is text and has a meaning only with its kind and system: ``E879`` is a cause of injury in
ICD-9 and no category of ICD-10; ``0331`` is a spinal tap (03.31), ``331`` an incision of the lung
(33.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from clinpeft.core.database import quote_sql_literal
from clinpeft.core.schemas import Attrition

# The ICD category: 3 characters, 4 for the V and E codes of ICD-9 (van Aken et al. 2021, arXiv
# 2102.04110, ``tasks/dia/dia.py`` of its code). In ICD-10, V and E are ordinary chapters.
DIAGNOSIS_GROUP_SQL = """CASE WHEN system = 'icd9' AND left(code, 1) IN ('V', 'E')
    THEN left(code, 4) ELSE left(code, 3) END"""

# The first 3 characters of the code as shipped, with leading zeros: ICD-9 ``0331`` is in group
# ``033``, ``966`` (96.6) in ``966``. Codes are not padded: without its zero, ``331`` (03.31) cannot
# be told from 33.1.
PROCEDURE_GROUP_SQL = "left(code, 3)"

# The group of the published builder (``tasks/pro/pro.py`` of the code of arXiv 2102.04110), which
# reads a code as an integer first: ``0331`` and ``3310`` both become ``331``.
PROCEDURE_GROUP_CORE_2021_SQL = "left(TRY_CAST(code AS BIGINT)::VARCHAR, 3)"

FULL_CODE_SQL = "code"


@dataclass(frozen=True)
class CodeClass:
    """One class of a multilabel task and its number of stays in the training split."""

    kind: str
    system: str
    code: str
    train_stays: int

    @property
    def name(self) -> str:
        """Unique in a label space, such as ``diagnosis:icd9:401``."""
        return f"{self.kind}:{self.system}:{self.code}"


def build_code_group_query(kinds: tuple[str, ...], code_grouping: str) -> str:
    """SELECT of the classes of each stay.

    Args:
        kinds: of ``diagnosis`` and ``procedure``, those that are classes.
        code_grouping: one of the SQL expressions above.
    """
    literals = ", ".join(quote_sql_literal(kind) for kind in kinds)
    return f"""SELECT DISTINCT stay_id, kind, system, {code_grouping} AS code FROM code
        WHERE kind IN ({literals}) AND {code_grouping} IS NOT NULL"""


def select_code_classes(
    connection: duckdb.DuckDBPyConnection, declared_query: str, min_train_stays: int
) -> tuple[tuple[CodeClass, ...], tuple[CodeClass, ...]]:
    """The classes of a label space, and the rare ones that are left out.

    Args:
        connection: with ``raw_label`` (``stay_id``, ``kind``, ``system``, ``code``) and
            ``stay_split`` (``stay_id``, ``split``).
        declared_query: SELECT of all classes; empty: those in ``raw_label``.
        min_train_stays: classes with fewer stays in the training split are rare.

    Returns:
        Both in the order of kind, system and code.
    """
    classes_query = (
        declared_query
        or "SELECT DISTINCT kind, system, code FROM raw_label JOIN stay_split USING (stay_id)"
    )
    query = f"""SELECT c.kind, c.system, c.code, count(a.stay_id)
        FROM (SELECT DISTINCT kind, system, code FROM ({classes_query})) c
        LEFT JOIN (
            SELECT raw_label.* FROM raw_label JOIN stay_split USING (stay_id)
            WHERE split = 'train') a
            ON a.kind = c.kind AND a.system = c.system AND a.code = c.code
        GROUP BY ALL ORDER BY ALL"""
    classes = [CodeClass(*row) for row in connection.execute(query).fetchall()]
    frequent = tuple(c for c in classes if c.train_stays >= min_train_stays)
    rare = tuple(c for c in classes if c.train_stays < min_train_stays)
    return frequent, rare


def read_code_titles(
    connection: duckdb.DuckDBPyConnection, code_grouping: str
) -> dict[str, tuple[str, ...]]:
    """The name of each class -> the titles of its codes, from the table ``code_title``.

    A title with a comma ("Pneumonia, organism unspecified") also counts by its part before the
    comma, which is what notes say. A hospital without titles gives an empty dictionary.

    Args:
        connection: with ``code_title``.
        code_grouping: SQL expression of the class of a code.
    """
    query = f"""SELECT kind, system, code, list(DISTINCT title ORDER BY title) FROM (
            SELECT kind, system, {code_grouping} AS code,
                unnest([title, trim(split_part(title, ',', 1))]) AS title
            FROM code_title)
        WHERE code IS NOT NULL AND title <> '' GROUP BY ALL"""
    return {
        f"{kind}:{system}:{code}": tuple(titles)
        for kind, system, code, titles in connection.execute(query).fetchall()
    }


def create_code_label_table(
    connection: duckdb.DuckDBPyConnection, classes: tuple[CodeClass, ...]
) -> Attrition:
    """Create the table ``stay_label`` (``stay_id``, ``label`` null, ``labels``) from ``raw_label``.

    Returns:
        The stays that have no class of the label space.
    """
    connection.execute(
        """CREATE OR REPLACE TABLE class_index
           (kind VARCHAR, system VARCHAR, code VARCHAR, class_index INTEGER)"""
    )
    rows = [(c.kind, c.system, c.code, index) for index, c in enumerate(classes)]
    if rows:  # executemany refuses an empty list
        connection.executemany("INSERT INTO class_index VALUES (?, ?, ?, ?)", rows)
    connection.execute("""CREATE OR REPLACE TABLE stay_label AS
        SELECT stay_id, NULL::INTEGER AS label,
            list(class_index.class_index ORDER BY class_index.class_index) AS labels
        FROM raw_label JOIN class_index USING (kind, system, code)
        JOIN stay_split USING (stay_id) GROUP BY stay_id""")
    ((split_stays, labeled_stays),) = connection.execute(
        "SELECT (SELECT count(*) FROM stay_split), (SELECT count(*) FROM stay_label)"
    ).fetchall()
    attrition = Attrition("classes", split_stays)
    attrition.drop_rows("none of its codes is in the label space", split_stays - labeled_stays)
    return attrition

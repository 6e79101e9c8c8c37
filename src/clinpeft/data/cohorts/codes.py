"""ICD codes -> the classes of a label space.

A code is text and means something only with its kind and system: ``E879`` is a cause of injury in ICD-9 and no category of ICD-10, ``0331`` is
a spinal tap (03.31) and ``331`` an incision of the lung (33.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from clinpeft.core.schemas import Attrition

DIAGNOSIS_GROUP_SQL = "CASE WHEN system = 'icd9' AND left(code, 1) IN ('V', 'E') THEN left(code, 4) ELSE left(code, 3) END"
"""SQL: the ICD category, 3 characters; 4 for the V and E codes of ICD-9 (arXiv 2102.04110). In ICD-10 V and E are chapters like others."""

PROCEDURE_GROUP_SQL = "left(code, 3)"
"""SQL: the first 3 characters of the code as it is shipped, leading zeros kept: ICD-9 ``0331`` is in group ``033`` and ``966`` (96.6) in ``966``.
Codes are not padded: without its zero ``331`` cannot be told from 33.1."""

PROCEDURE_GROUP_CORE_2021_SQL = "left(TRY_CAST(code AS BIGINT)::VARCHAR, 3)"
"""SQL: what the published builder makes, which reads the code as a whole number first: ``0331`` and ``3310`` both become ``331``."""

FULL_CODE_SQL = "code"


@dataclass(frozen=True)
class CodeClass:
    """One class of a multilabel question; ``train_stays`` have it."""

    kind: str
    system: str
    code: str
    train_stays: int

    @property
    def name(self) -> str:
        """Unique in a label space, such as ``diagnosis:icd9:401``."""
        return f"{self.kind}:{self.system}:{self.code}"


def build_code_group_query(kinds: tuple[str, ...], code_grouping: str) -> str:
    """SQL: the classes of each stay, by one of the expressions above."""
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    return f"SELECT DISTINCT stay_id, kind, system, {code_grouping} AS code FROM code WHERE kind IN ({listed}) AND {code_grouping} IS NOT NULL"


def select_code_classes(
    connection: duckdb.DuckDBPyConnection, declared_query: str, min_train_stays: int
) -> tuple[tuple[CodeClass, ...], tuple[CodeClass, ...]]:
    """The classes in order of kind, system and code, and those that the rare-class rule leaves out.

    Args:
        connection: with ``answered`` (``stay_id``, ``kind``, ``system``, ``code``) and ``assigned`` (``stay_id``, ``split``).
        declared_query: SELECT of all classes; empty: those in ``answered``.
        min_train_stays: classes with fewer stays in training are left out; 0 leaves none out.
    """
    space = (
        declared_query
        or "SELECT DISTINCT kind, system, code FROM answered JOIN assigned USING (stay_id)"
    )
    query = f"""SELECT c.kind, c.system, c.code, count(a.stay_id)
        FROM (SELECT DISTINCT kind, system, code FROM ({space})) c
        LEFT JOIN (SELECT answered.* FROM answered JOIN assigned USING (stay_id) WHERE split = 'train') a
            ON a.kind = c.kind AND a.system = c.system AND a.code = c.code
        GROUP BY ALL ORDER BY ALL"""
    classes = [CodeClass(*row) for row in connection.execute(query).fetchall()]
    return tuple(c for c in classes if c.train_stays >= min_train_stays), tuple(
        c for c in classes if c.train_stays < min_train_stays
    )


def read_code_titles(
    connection: duckdb.DuckDBPyConnection, code_grouping: str
) -> dict[str, tuple[str, ...]]:
    """The name of each class -> what its codes are called, from the table ``code_title``, which is empty where the hospital has no titles.

    A title with a comma ("Pneumonia, organism unspecified") is also there as its part before the comma, which is what people write.

    Args:
        connection: with ``code_title``.
        code_grouping: the expression that makes the class of a code.
    """
    query = f"""SELECT kind, system, code, list(DISTINCT title ORDER BY title) FROM (
            SELECT kind, system, {code_grouping} AS code, unnest([title, trim(split_part(title, ',', 1))]) AS title FROM code_title)
        WHERE code IS NOT NULL AND title <> '' GROUP BY ALL"""
    return {
        f"{kind}:{system}:{code}": tuple(found)
        for kind, system, code, found in connection.execute(query).fetchall()
    }


def create_code_label_table(
    connection: duckdb.DuckDBPyConnection, classes: tuple[CodeClass, ...]
) -> Attrition:
    """The table ``labelled`` (``stay_id``, ``label`` null, ``labels``) from ``answered``, and the stays that have no class of the space left."""
    connection.execute(
        "CREATE OR REPLACE TABLE class_index (kind VARCHAR, system VARCHAR, code VARCHAR, place INTEGER)"
    )
    rows = [(c.kind, c.system, c.code, location) for location, c in enumerate(classes)]
    if rows:
        connection.executemany("INSERT INTO class_index VALUES (?, ?, ?, ?)", rows)
    connection.execute("""CREATE OR REPLACE TABLE labelled AS
        SELECT stay_id, NULL::INTEGER AS label, list(place ORDER BY place) AS labels
        FROM answered JOIN class_index USING (kind, system, code) JOIN assigned USING (stay_id) GROUP BY stay_id""")
    ((assigned, labelled),) = connection.execute(
        "SELECT (SELECT count(*) FROM assigned), (SELECT count(*) FROM labelled)"
    ).fetchall()
    attrition = Attrition("classes", assigned)
    attrition.drop_rows("none of its codes is in the label space", assigned - labelled)
    return attrition

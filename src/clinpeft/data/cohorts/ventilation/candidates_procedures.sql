-- Intervals may overlap: the stay is divided at every start and end, each piece takes the strongest
-- status over it, and touching pieces of one status join.
CREATE OR REPLACE TEMP TABLE ventilation_candidate AS
WITH usable AS (
    SELECT * FROM ventilation_interval WHERE reason IS NULL
), edge AS (
    SELECT icu_stay_id, began_at AS edge_at FROM usable
    UNION
    SELECT icu_stay_id, ended_at FROM usable
), piece AS (
    SELECT icu_stay_id, edge_at AS began_at,
        lead(edge_at) OVER (PARTITION BY icu_stay_id ORDER BY edge_at) AS ended_at
    FROM edge
), covered AS (
    SELECT piece.icu_stay_id, piece.began_at, piece.ended_at,
        arg_min(usable.status, usable.rank) AS status
    FROM piece
    JOIN usable ON usable.icu_stay_id = piece.icu_stay_id
        AND usable.began_at <= piece.began_at AND usable.ended_at >= piece.ended_at
    GROUP BY ALL
), with_begin AS (
    SELECT *,
        lag(status) OVER stay IS DISTINCT FROM status OR lag(ended_at) OVER stay <> began_at
            AS begins
    FROM covered
    WINDOW stay AS (PARTITION BY icu_stay_id ORDER BY began_at)
), numbered AS (
    SELECT *,
        sum(begins::INTEGER) OVER (PARTITION BY icu_stay_id ORDER BY began_at) AS number
    FROM with_begin
)
SELECT icu_stay_id, any_value(status) AS status, min(began_at) AS began_at,
    max(ended_at) AS ended_at, NULL::VARCHAR AS reason
FROM numbered
GROUP BY icu_stay_id, number

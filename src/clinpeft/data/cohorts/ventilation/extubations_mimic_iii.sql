-- The start of an extubation procedure is a moment of its own, whatever is charted in the same minute.
-- Source: mimic-code, mimic-iii/concepts/durations/ventilation_classification.sql.
CREATE OR REPLACE TEMP TABLE ventilation_extubation AS
WITH performed AS (
    SELECT
        try_cast(icu_stay_id AS BIGINT) AS icu_stay_id,
        try_cast(began_at AS TIMESTAMP) AS charted_at,
        kind.signal = 'self-extubated' AS self_extubated
    FROM ventilation_procedure
    JOIN ventilation_extubation_item AS kind USING (item)
), with_reason AS (
    SELECT *,
        CASE
            WHEN charted_at IS NULL THEN 'start missing or not a time'
            WHEN icu_stay_id IS NULL OR icu_stay_id NOT IN (SELECT icu_stay_id FROM icu_stay)
            THEN 'no known ICU stay'
        END AS reason
    FROM performed
)
SELECT
    reason,
    if(reason IS NULL, icu_stay_id, NULL) AS icu_stay_id,
    if(reason IS NULL, charted_at, NULL) AS charted_at,
    self_extubated,
    count(*) AS n_rows
FROM with_reason
GROUP BY 1, 2, 3, 4

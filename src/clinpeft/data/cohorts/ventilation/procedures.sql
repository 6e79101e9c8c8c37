-- Ventilation recorded as procedures, one row each; rows that cannot be used have a reason.
CREATE OR REPLACE TEMP TABLE ventilation_interval AS
WITH performed AS (
    SELECT
        try_cast(icu_stay_id AS BIGINT) AS icu_stay_id,
        try_cast(began_at AS TIMESTAMP) AS began_at,
        try_cast(ended_at AS TIMESTAMP) AS ended_at,
        state,
        kind.status,
        kind.rank
    FROM ventilation_procedure
    JOIN ventilation_kind AS kind USING (item)
)
SELECT * EXCLUDE (state),
    CASE
        WHEN state = 'Rewritten' THEN 'rewritten'
        WHEN began_at IS NULL OR ended_at IS NULL THEN 'start or end missing or not a time'
        WHEN icu_stay_id IS NULL OR icu_stay_id NOT IN (SELECT icu_stay_id FROM icu_stay)
        THEN 'no known ICU stay'
        WHEN ended_at <= began_at THEN 'end not after start'
    END AS reason
FROM performed

-- The candidates that are episodes, with the ids of their stay.
CREATE OR REPLACE TABLE episode AS
SELECT
    icu_stay.subject_id::BIGINT AS subject_id,
    icu_stay.stay_id::BIGINT AS stay_id,
    icu_stay_id,
    candidate.status,
    candidate.began_at,
    candidate.ended_at
FROM ventilation_candidate AS candidate
JOIN icu_stay USING (icu_stay_id)
WHERE candidate.reason IS NULL
ORDER BY subject_id, stay_id, icu_stay_id, candidate.began_at

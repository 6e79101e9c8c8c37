-- Each ventilated ICU stay with its hours; the label is that of the admission, from all its ICU stays.
WITH measured AS (
    SELECT
        subject_id,
        stay_id,
        icu_stay_id,
        epoch_us(max(ended_at)) - epoch_us(min(began_at)) AS span,
        sum(epoch_us(ended_at) - epoch_us(began_at)) AS summed
    FROM episode
    WHERE status IN (SELECT unnest($counted))
    GROUP BY subject_id, stay_id, icu_stay_id
)
SELECT
    subject_id,
    stay_id,
    icu_stay_id,
    {measure} / 3.6e9 AS hours,  -- from microseconds
    {over_admission}({measure}) OVER (PARTITION BY stay_id) / 3.6e9 + $grace_hours
        >= $prolonged_hours AS prolonged
FROM measured
ORDER BY subject_id, stay_id, icu_stay_id

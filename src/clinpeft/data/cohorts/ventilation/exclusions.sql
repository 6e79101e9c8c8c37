-- Each excluded ventilated ICU stay, with the first reason that holds, in the order of the published
-- cohort: github.com/lindvalllab/clinicalXLNet, cohort_curation.
WITH measured AS (
    SELECT subject_id, stay_id, icu_stay_id,
        (epoch_us(max(ended_at)) - epoch_us(min(began_at))) / 3.6e9 AS hours  -- from microseconds
    FROM episode
    WHERE status IN (SELECT unnest($counted))
    GROUP BY subject_id, stay_id, icu_stay_id
), diagnosed AS (
    SELECT code.stay_id, min_by(excluded.reason, excluded.rank) AS reason
    FROM code
    JOIN ventilation_diagnosis_exclusion AS excluded
        ON excluded.system = code.system AND starts_with(code.code, excluded.prefix)
    WHERE code.kind = 'diagnosis'
    GROUP BY code.stay_id
), with_reason AS (
    SELECT
        measured.*,
        icu_stay.began_at,
        CASE
            WHEN stay.age_years IS NULL THEN 'age unknown'
            WHEN stay.age_years < $adult_years THEN 'under 18 years'
            WHEN diagnosed.reason IS NOT NULL THEN diagnosed.reason
            WHEN measured.hours + $grace_hours < $min_hours THEN 'ventilated for less than 2 days'
        END AS reason
    FROM measured
    LEFT JOIN stay ON stay.stay_id = measured.stay_id
    LEFT JOIN diagnosed ON diagnosed.stay_id = measured.stay_id
    LEFT JOIN icu_stay ON icu_stay.icu_stay_id = measured.icu_stay_id
), ordered AS (
    SELECT *,
        row_number() OVER (
            PARTITION BY stay_id, reason IS NULL ORDER BY began_at NULLS LAST, icu_stay_id)
            AS position
    FROM with_reason
)
SELECT subject_id, stay_id, icu_stay_id,
    coalesce(reason, 'not the first ICU stay of the admission') AS reason
FROM ordered
WHERE reason IS NOT NULL OR position > 1
ORDER BY subject_id, stay_id, icu_stay_id

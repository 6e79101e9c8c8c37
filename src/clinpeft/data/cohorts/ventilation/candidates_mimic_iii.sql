-- Consecutive moments are one candidate until ventilation ends: after an extubation, at oxygen without
-- a ventilator, or after more than eight hours without a ventilator setting.
-- Source: mimic-code, mimic-iii/concepts/durations/ventilation_durations.sql.
CREATE OR REPLACE TEMP TABLE ventilation_candidate AS
WITH moment AS (
    -- An extubation that is recorded twice with equal values (charted, and as a procedure) is one
    -- moment, and the end of its episode. With different values it is two, and after the first of
    -- them the whole minute follows an extubation: the union of mimic-code does so, and so do its
    -- episodes.
    SELECT icu_stay_id, charted_at, ventilated, oxygen, extubated, self_extubated
    FROM ventilation_moment WHERE reason IS NULL
    UNION
    SELECT icu_stay_id, charted_at, false, false, true, self_extubated
    FROM ventilation_extubation WHERE reason IS NULL
), with_previous AS (
    SELECT *,
        lag(charted_at) OVER (PARTITION BY icu_stay_id, ventilated ORDER BY charted_at)
            AS previous_of_kind_at,
        lag(extubated) OVER (
            PARTITION BY icu_stay_id, ventilated OR extubated ORDER BY charted_at, extubated)
            AS after_extubation
    FROM moment
), with_begin AS (
    SELECT *,
        coalesce(after_extubation, false)
        OR (oxygen AND NOT ventilated)
        OR coalesce(ventilated AND charted_at > previous_of_kind_at + INTERVAL 8 HOUR, false)
            AS begins
    FROM with_previous
), numbered AS (
    -- RANGE: rows of the same minute belong to the same candidate, whatever their order
    SELECT *,
        sum(begins::INTEGER) OVER (
            PARTITION BY icu_stay_id ORDER BY charted_at RANGE UNBOUNDED PRECEDING) AS number
    FROM with_begin
)
SELECT
    icu_stay_id,
    'ventilated' AS status,
    min(charted_at) AS began_at,
    max(charted_at) AS ended_at,
    CASE
        WHEN NOT bool_or(ventilated) THEN 'no ventilator row'
        WHEN min(charted_at) = max(charted_at) THEN 'charted at one moment only'
    END AS reason
FROM numbered
WHERE ventilated OR extubated
GROUP BY icu_stay_id, number

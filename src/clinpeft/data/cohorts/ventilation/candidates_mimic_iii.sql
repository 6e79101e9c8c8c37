-- Moments in a row, cut where ventilation ended: after an extubation, at oxygen without a ventilator, after more than eight hours of silence.
CREATE OR REPLACE TEMP TABLE ventilation_candidate AS
WITH moment AS (
    -- Told twice in the same words (charted, and as a procedure), an extubation is one moment, and the end of its episode. Told in different
    -- words it is two, and by the first of them the whole minute comes after an extubation: mimic-code's union does so, and so do its episodes.
    SELECT icu_stay_id, charted_at, ventilated, oxygen, extubated, self_extubated FROM ventilation_moment WHERE reason IS NULL
    UNION
    SELECT icu_stay_id, charted_at, false, false, true, self_extubated FROM ventilation_extubation WHERE reason IS NULL
), remembered AS (
    SELECT *,
        lag(charted_at) OVER (PARTITION BY icu_stay_id, ventilated ORDER BY charted_at) AS same_kind_before_at,
        lag(extubated) OVER (PARTITION BY icu_stay_id, ventilated OR extubated ORDER BY charted_at, extubated) AS after_extubation
    FROM moment
), cut AS (
    SELECT *,
        coalesce(after_extubation, false)
        OR (oxygen AND NOT ventilated)
        OR coalesce(ventilated AND charted_at > same_kind_before_at + INTERVAL 8 HOUR, false) AS begins
    FROM remembered
), numbered AS (
    -- RANGE: rows of the same minute belong to the same candidate, in whatever order they come
    SELECT *, sum(begins::INTEGER) OVER (PARTITION BY icu_stay_id ORDER BY charted_at RANGE UNBOUNDED PRECEDING) AS number
    FROM cut
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

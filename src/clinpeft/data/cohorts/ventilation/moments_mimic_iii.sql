-- One row per ICU stay and charted minute, with what was charted then; rows that cannot be used are counted by reason instead.
CREATE OR REPLACE TEMP TABLE ventilation_moment AS
WITH charted AS (
    SELECT
        try_cast(icu_stay_id AS BIGINT) AS icu_stay_id,
        try_cast(charted_at AS TIMESTAMP) AS charted_at,
        item,
        value,
        coalesce(try_cast(error AS DOUBLE) = 1, false) AS in_error
    FROM ventilation_charted
    WHERE item IN (SELECT item FROM ventilation_sign)
), judged AS (
    SELECT *,
        CASE
            WHEN in_error THEN 'marked as an error'
            WHEN value IS NULL THEN 'value missing'
            WHEN charted_at IS NULL THEN 'chart time missing or not a time'
            WHEN icu_stay_id IS NULL OR icu_stay_id NOT IN (SELECT icu_stay_id FROM icu_stay) THEN 'no known ICU stay'
        END AS reason
    FROM charted
)
SELECT
    judged.reason,
    if(judged.reason IS NULL, judged.icu_stay_id, NULL) AS icu_stay_id,
    if(judged.reason IS NULL, judged.charted_at, NULL) AS charted_at,
    coalesce(bool_or(sign.signal = 'ventilated'), false) AS ventilated,
    coalesce(bool_or(sign.signal = 'oxygen'), false) AS oxygen,
    coalesce(bool_or(sign.signal IN ('extubated', 'self-extubated')), false) AS extubated,
    coalesce(bool_or(sign.signal = 'self-extubated'), false) AS self_extubated,
    count(*) AS n_rows
FROM judged
LEFT JOIN ventilation_sign AS sign  -- at most one sign fits a row, so that rows stay rows
    ON sign.item = judged.item
    AND (sign.value IS NULL OR sign.value = judged.value)
    AND (sign.excepted IS NULL OR sign.excepted <> judged.value)
GROUP BY 1, 2, 3

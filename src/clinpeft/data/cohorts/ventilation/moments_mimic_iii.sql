-- One row per ICU stay and charted minute, with the signs of that minute; rows that cannot be used are
-- counted by reason instead.
-- Source: mimic-code, mimic-iii/concepts/durations/ventilation_classification.sql.
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
), with_reason AS (
    SELECT *,
        CASE
            WHEN in_error THEN 'marked as an error'
            WHEN value IS NULL THEN 'value missing'
            WHEN charted_at IS NULL THEN 'chart time missing or not a time'
            WHEN icu_stay_id IS NULL OR icu_stay_id NOT IN (SELECT icu_stay_id FROM icu_stay)
            THEN 'no known ICU stay'
        END AS reason
    FROM charted
)
SELECT
    with_reason.reason,
    if(with_reason.reason IS NULL, with_reason.icu_stay_id, NULL) AS icu_stay_id,
    if(with_reason.reason IS NULL, with_reason.charted_at, NULL) AS charted_at,
    coalesce(bool_or(sign.signal = 'ventilated'), false) AS ventilated,
    coalesce(bool_or(sign.signal = 'oxygen'), false) AS oxygen,
    coalesce(bool_or(sign.signal IN ('extubated', 'self-extubated')), false) AS extubated,
    coalesce(bool_or(sign.signal = 'self-extubated'), false) AS self_extubated,
    count(*) AS n_rows
FROM with_reason
LEFT JOIN ventilation_sign AS sign  -- at most one sign matches a row, so that no row is doubled
    ON sign.item = with_reason.item
    AND (sign.value IS NULL OR sign.value = with_reason.value)
    AND (sign.excluded_value IS NULL OR sign.excluded_value <> with_reason.value)
GROUP BY 1, 2, 3

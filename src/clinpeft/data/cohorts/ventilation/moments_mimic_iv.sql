-- One row per ICU stay and charted minute, with its devices and modes; rows that cannot be used are
-- counted by reason instead.
-- Source: mimic-code, mimic-iv/concepts/measurement/ventilator_setting.sql and oxygen_delivery.sql.
CREATE OR REPLACE TEMP TABLE ventilation_moment AS
WITH charted AS (
    SELECT try_cast(icu_stay_id AS BIGINT) AS icu_stay_id,
        try_cast(charted_at AS TIMESTAMP) AS charted_at, item, value
    FROM ventilation_charted
    WHERE item IN (SELECT item FROM ventilation_item)
), with_reason AS (
    SELECT *,
        CASE
            WHEN value IS NULL THEN 'value missing'
            WHEN charted_at IS NULL THEN 'chart time missing or not a time'
            WHEN icu_stay_id IS NULL OR icu_stay_id NOT IN (SELECT icu_stay_id FROM icu_stay)
            THEN 'no known ICU stay'
        END AS reason
    FROM charted
)
SELECT
    reason,
    if(reason IS NULL, icu_stay_id, NULL) AS icu_stay_id,
    if(reason IS NULL, charted_at, NULL) AS charted_at,
    min(value) FILTER (item = $device) AS first_device,  -- slot 1 of up to four, in alphabetical order
    coalesce(bool_or(item = $device AND value IN (
        SELECT value FROM ventilation_status_value
        WHERE item = $device AND rank = $mask_rank)), false) AS on_mask,
    -- of two modes in one minute the last in alphabetical order, as in mimic-code
    max(value) FILTER (item = $mode) AS mode,
    max(value) FILTER (item = $hamilton_mode) AS hamilton_mode,
    -- the other items are oxygen flows
    coalesce(bool_or(item NOT IN ($device, $mode, $hamilton_mode)), false) AS on_oxygen_flow,
    count(*) AS n_rows
FROM with_reason
GROUP BY 1, 2, 3

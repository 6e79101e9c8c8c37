-- The status of each moment is the strongest that it shows; moments of one status in a row are one candidate, cut at 14 hours of silence.
CREATE OR REPLACE TEMP TABLE ventilation_candidate AS
WITH shown AS (
    SELECT icu_stay_id, charted_at, $device AS item, first_device AS value FROM ventilation_moment WHERE on_oxygen_flow OR NOT $with_flow
    UNION ALL
    SELECT icu_stay_id, charted_at, $mode, mode FROM ventilation_moment
    UNION ALL
    SELECT icu_stay_id, charted_at, $hamilton_mode, hamilton_mode FROM ventilation_moment
), ranked AS (
    SELECT shown.icu_stay_id, shown.charted_at, reading.rank FROM shown JOIN ventilation_reading AS reading USING (item, value)
    UNION ALL
    SELECT icu_stay_id, charted_at, $mask_rank FROM ventilation_moment WHERE on_mask AND (on_oxygen_flow OR NOT $with_flow)
), moment AS (
    SELECT icu_stay_id, charted_at, min(rank) AS rank FROM ranked WHERE icu_stay_id IS NOT NULL GROUP BY ALL
), remembered AS (
    SELECT *, lag(rank) OVER stay AS rank_before, lag(charted_at) OVER stay AS before_at, lead(charted_at) OVER stay AS after_at
    FROM moment
    WINDOW stay AS (PARTITION BY icu_stay_id ORDER BY charted_at)
), numbered AS (
    -- date_diff counts the full hours of the clock that are passed, as BigQuery does: 00:30 to 14:29 are 14, 00:00 to 13:59 are 13
    SELECT *,
        coalesce(date_diff('hour', charted_at, after_at) < 14, false) AS goes_on,
        sum((rank_before IS DISTINCT FROM rank OR date_diff('hour', before_at, charted_at) >= 14)::INTEGER)
            OVER (PARTITION BY icu_stay_id ORDER BY charted_at) AS number
    FROM remembered
)
SELECT
    icu_stay_id,
    any_value(reading.status) AS status,
    min(charted_at) AS began_at,
    max(if(goes_on, after_at, charted_at)) AS ended_at,
    if(min(charted_at) = max(charted_at), 'charted at one moment only', NULL) AS reason
FROM numbered
JOIN (SELECT DISTINCT rank, status FROM ventilation_reading) AS reading USING (rank)
GROUP BY icu_stay_id, number

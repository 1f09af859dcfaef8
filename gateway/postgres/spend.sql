-- What limits on spend are measured by.

-- name: spent
-- Charges of the owners $1 (keys, or projects with all their keys) of customers $2 from the days $3 to $4, in order.
SELECT COALESCE(SUM(usage_daily.charge_nano), 0) AS nano
FROM
    UNNEST($1::uuid[], $2::uuid[], $3::date[], $4::date[])
    WITH ORDINALITY AS asks (owner_id, customer_id, first_day, last_day, place)
LEFT JOIN api_keys ON asks.owner_id IN (api_keys.id, api_keys.project_id)
LEFT JOIN usage_daily
    ON
        asks.customer_id = usage_daily.customer_id
        AND api_keys.id = usage_daily.key_id
        AND usage_daily.day BETWEEN asks.first_day AND asks.last_day
GROUP BY asks.place
ORDER BY asks.place;

select message_id, deduplicated from carillon_put_messages(
$1, $2, $3,
$4, $5,
$6, $7,
$8::text[],
$9::int[],
$10::int[],
$11::int[],
$12::text[],
$13::bytea[],
$14::text[],
$15::text[]);

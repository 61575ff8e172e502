select carillon_hand_out($1, $2, $3, $4,
$5) as ids;

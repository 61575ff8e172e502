import type { DescField, DescMessage, MessageShape } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { type FieldMask, FeatureSet_FieldPresence as Presence } from "@bufbuild/protobuf/wkt";
import { Refusal } from "../errors.ts";

/**
 * The contract names of the fields that an update writes: those that `update_mask` names or, without a mask or with an
 * empty one, those that are set. A field that is named and not set is to be cleared to its default.
 *
 * A field can be written when it can be told apart from one that is not given: it has presence, or is a map or list.
 * The others address the resource or carry the idempotency key; a mask may name them to no effect, because it may have
 * been made from all keys of a body.
 *
 * @throws Refusal FIELD_INVALID of update_mask when it names something that is no field.
 */
export function writtenFields<Desc extends DescMessage>(
  schema: Desc,
  request: MessageShape<Desc>,
): ReadonlySet<string> {
  const message = reflect(schema, request);
  const mask = (request as { readonly updateMask?: FieldMask | undefined }).updateMask;
  const paths = mask?.paths ?? [];
  for (const path of paths) {
    if (!schema.fields.some((field) => field.name === path)) {
      throw Refusal.field("update_mask", `${path.slice(0, 64)} is not a field that can be updated`);
    }
  }
  const written = schema.fields.filter(
    (field) => isWritable(field) && (paths.length === 0 ? message.isSet(field) : paths.includes(field.name)),
  );
  return new Set(written.map((field) => field.name));
}

function isWritable(field: DescField): boolean {
  if (field.name === "update_mask") return false;
  return field.fieldKind === "map" || field.fieldKind === "list" || field.presence !== Presence.IMPLICIT;
}

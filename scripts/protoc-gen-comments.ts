/**
 * A plugin of buf: writes the comments of the contract to `comments.json`, by full name. Generated code has them for
 * compilers only, and the command line shows them as help.
 */
import { readFileSync, writeSync } from "node:fs";
import { create, createFileRegistry, type DescFile, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  CodeGeneratorRequestSchema,
  CodeGeneratorResponse_Feature,
  CodeGeneratorResponse_FileSchema,
  CodeGeneratorResponseSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";

/** The package whose comments count. */
const PACKAGE = "scheduling.v1";

const request = fromBinary(CodeGeneratorRequestSchema, readFileSync(0));
const registry = createFileRegistry(create(FileDescriptorSetSchema, { file: request.protoFile }));
const comments: Record<string, string> = {};
for (const file of registry.files) if (file.proto.package === PACKAGE) Object.assign(comments, commentsOf(file));
const sorted = Object.fromEntries(Object.entries(comments).toSorted(([a], [b]) => (a < b ? -1 : 1)));
const file = create(CodeGeneratorResponse_FileSchema, {
  name: `${PACKAGE.replaceAll(".", "/")}/comments.json`,
  content: `${JSON.stringify(sorted, null, 2)}\n`,
});
const response = create(CodeGeneratorResponseSchema, {
  supportedFeatures: BigInt(CodeGeneratorResponse_Feature.PROTO3_OPTIONAL),
  // Each input of buf.gen.yaml is a call, and only one of them holds the package.
  file: Object.keys(sorted).length === 0 ? [] : [file],
});
writeSync(1, toBinary(CodeGeneratorResponseSchema, response));

/** The comments before the services, methods, messages and fields of a file. Lines of a paragraph are joined. */
function commentsOf({ proto, services, messages }: DescFile): Record<string, string> {
  const byPath = new Map(
    proto.sourceCodeInfo?.location.map(({ path, leadingComments }) => [path.join("."), leadingComments]),
  );
  const found: Record<string, string> = {};
  const note = (name: string, ...path: readonly number[]): void => {
    const text = byPath.get(path.join("."))?.trim();
    if (text) found[name] = text.replace(/(?<!\n) *\n *(?!\s)/g, " ").replace(/^ +/gm, "");
  };
  // The numbers are those of the fields of google.protobuf.FileDescriptorProto and what it holds.
  for (const [index, service] of services.entries()) {
    note(service.typeName, 6, index);
    for (const [at, method] of service.methods.entries()) note(`${service.typeName}.${method.name}`, 6, index, 2, at);
  }
  for (const [index, message] of messages.entries()) {
    note(message.typeName, 4, index);
    for (const [at, field] of message.fields.entries()) note(`${message.typeName}.${field.name}`, 4, index, 2, at);
  }
  return found;
}

import { type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { nestedTypes } from "@bufbuild/protobuf/reflect";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { ServerReflection as ServerReflectionV1Alpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";

/** A question, in the words that v1 and v1alpha share. */
type Question =
  | {
      readonly case: "fileByFilename" | "fileContainingSymbol" | "allExtensionNumbersOfType" | "listServices";
      readonly value: string;
    }
  | {
      readonly case: "fileContainingExtension";
      readonly value: { readonly containingType: string; readonly extensionNumber: number };
    }
  | { readonly case: undefined; readonly value?: undefined };

type Answer =
  | { case: "listServicesResponse"; value: { service: { name: string }[] } }
  | { case: "fileDescriptorResponse"; value: { fileDescriptorProto: Uint8Array[] } }
  | { case: "allExtensionNumbersResponse"; value: { baseTypeName: string; extensionNumber: number[] } }
  | { case: "errorResponse"; value: { errorCode: number; errorMessage: string } };

/**
 * Registers gRPC server reflection, v1 and v1alpha, for `services`, so that grpcurl, buf curl and their like can call
 * them without the contract's files. Reflection names itself in the list too.
 */
export function reflectionRoutes(services: readonly DescService[]): (router: ConnectRouter) => void {
  const answer = createAnswers([...services, ServerReflection, ServerReflectionV1Alpha]);

  return (router) => {
    router.service(ServerReflection, {
      async *serverReflectionInfo(requests, { signal }) {
        for await (const request of endedBy(signal, requests)) {
          yield { validHost: request.host, originalRequest: request, messageResponse: answer(request.messageRequest) };
        }
      },
    });
    router.service(ServerReflectionV1Alpha, {
      async *serverReflectionInfo(requests, { signal }) {
        for await (const request of endedBy(signal, requests)) {
          yield { validHost: request.host, originalRequest: request, messageResponse: answer(request.messageRequest) };
        }
      },
    });
  };
}

function createAnswers(services: readonly DescService[]): (question: Question) => Answer {
  const files = new Map<string, DescFile>();
  for (const service of services)
    for (const file of withDependencies(service.file)) files.set(`${file.name}.proto`, file);
  const fileBySymbol = new Map<string, DescFile>();
  const fileByExtension = new Map<string, DescFile>();
  const extensionNumbers = new Map<string, number[]>();
  for (const file of files.values()) {
    for (const symbol of symbolsOf(file)) fileBySymbol.set(symbol, file);
    for (const type of nestedTypes(file)) {
      if (type.kind !== "extension") continue;
      const { typeName } = type.extendee;
      fileByExtension.set(`${typeName} ${type.number}`, file);
      extensionNumbers.set(typeName, [...(extensionNumbers.get(typeName) ?? []), type.number]);
    }
  }
  const serviceNames = services.map((service) => ({ name: service.typeName }));
  const encoded = new Map<DescFile, Uint8Array>();

  function descriptorsOf(file: DescFile | undefined, asked: string): Answer {
    if (file === undefined) return refusal(Code.NotFound, `${asked} is not known`);
    const fileDescriptorProto = withDependencies(file).map((needed) => {
      const bytes = encoded.get(needed) ?? toBinary(FileDescriptorProtoSchema, needed.proto);
      encoded.set(needed, bytes);
      return bytes;
    });
    return { case: "fileDescriptorResponse", value: { fileDescriptorProto } };
  }

  return (question) => {
    switch (question.case) {
      case "listServices":
        return { case: "listServicesResponse", value: { service: serviceNames } };
      case "fileByFilename":
        return descriptorsOf(files.get(question.value), question.value);
      case "fileContainingSymbol":
        return descriptorsOf(fileBySymbol.get(question.value), question.value);
      case "fileContainingExtension": {
        const asked = `${question.value.containingType} ${question.value.extensionNumber}`;
        return descriptorsOf(fileByExtension.get(asked), asked);
      }
      case "allExtensionNumbersOfType": {
        if (!fileBySymbol.has(question.value)) return refusal(Code.NotFound, `${question.value} is not known`);
        const extensionNumber = extensionNumbers.get(question.value) ?? [];
        return { case: "allExtensionNumbersResponse", value: { baseTypeName: question.value, extensionNumber } };
      }
      default:
        return refusal(Code.InvalidArgument, "the request asks nothing");
    }
  };
}

/** The numbers of Connect's codes are those of grpc::StatusCode, which the protocol asks for. */
function refusal(code: Code, message: string): Answer {
  return { case: "errorResponse", value: { errorCode: code, errorMessage: message } };
}

/** `file` and all that it imports, directly or not, `file` first. */
function withDependencies(file: DescFile): DescFile[] {
  const found = new Set<DescFile>();
  const visit = (next: DescFile) => {
    if (found.has(next)) return;
    found.add(next);
    next.dependencies.forEach(visit);
  };
  visit(file);
  return [...found];
}

/** The full name of everything that `file` declares, from services and their methods down to enum values. */
function* symbolsOf(file: DescFile): Generator<string> {
  for (const type of nestedTypes(file)) {
    yield type.typeName;
    switch (type.kind) {
      case "message":
        for (const member of type.members) yield `${type.typeName}.${member.name}`;
        for (const oneof of type.oneofs) yield `${type.typeName}.${oneof.name}`;
        break;
      case "enum": {
        // A value belongs to the scope around its enum.
        const scope = type.typeName.slice(0, type.typeName.lastIndexOf(".") + 1);
        for (const value of type.values) yield `${scope}${value.name}`;
        break;
      }
      case "service":
        for (const method of type.methods) yield `${type.typeName}.${method.name}`;
        break;
    }
  }
}

/** The items of `requests`; throws the reason of `signal` when it aborts, even while the caller sends nothing. */
async function* endedBy<T>(signal: AbortSignal, requests: AsyncIterable<T>): AsyncGenerator<T> {
  const iterator = requests[Symbol.asyncIterator]();
  for (;;) {
    const { promise: aborted, reject } = Promise.withResolvers<never>();
    const abort = () => reject(ConnectError.from(signal.reason));
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    try {
      const next = await Promise.race([iterator.next(), aborted]);
      if (next.done) return;
      yield next.value;
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }
}

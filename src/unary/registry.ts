import { create, type DescMethodUnary, type Message, type MessageInitShape } from "@bufbuild/protobuf";
import {
  type ConnectRouter,
  type ConnectRouterOptions,
  createMethodImplSpec,
  createServiceImplSpec,
  type HandlerContext,
  type MethodImplSpec,
} from "@connectrpc/connect";
import {
  createMethodSerializationLookup,
  createMethodUrl,
  getAbortSignalReason,
  type UniversalHandlerOptions,
  validateUniversalHandlerOptions,
} from "@connectrpc/connect/protocol";

/** A unary method, how it is implemented, and all that its calls have in common. */
export interface UnaryMethod {
  readonly method: DescMethodUnary;
  /** `/package.Service/Method` */
  readonly path: string;
  readonly implementation: (request: Message, context: HandlerContext) => unknown;
  readonly options: UniversalHandlerOptions;
  /** Whether it is offered over these protocols. */
  readonly protocols: { readonly grpc: boolean; readonly connect: boolean };
  /** Reads requests and writes answers within the limits of the options. */
  readonly serialization: ReturnType<typeof createMethodSerializationLookup>;
  /** The answer with its defaults, of what an implementation returns. */
  readonly complete: (answer: unknown) => Message;
  /** The calls that run; they are aborted when the process starts to drain. */
  readonly live: Set<{ abort(reason: unknown): void }>;
}

/**
 * The unary methods that `routes` registers, by path. Options mean what they mean to a ConnectRouter: those of a service
 * go before those of the router, and they decide its protocols alone.
 */
export function unaryMethods(
  routes: (router: ConnectRouter) => void,
  routerOptions: ConnectRouterOptions,
): Map<string, UnaryMethod> {
  const base = { ...routerOptions, ...validateUniversalHandlerOptions(routerOptions) };
  const methods = new Map<string, UnaryMethod>();

  function add(spec: MethodImplSpec, own: ConnectRouterOptions | undefined): void {
    if (spec.kind !== "unary") return;
    const { method } = spec;
    const options = own === undefined ? base : validateUniversalHandlerOptions({ ...base, ...own });
    const { grpc, connect } = own ?? routerOptions;
    const live: UnaryMethod["live"] = new Set();
    const shutdown = options.shutdownSignal;
    // One listener for all calls: each would have to be removed again.
    shutdown?.addEventListener("abort", () => {
      for (const call of live) call.abort(getAbortSignalReason(shutdown));
    });
    const path = createMethodUrl("/", method);
    methods.set(path, {
      method,
      path,
      implementation: spec.impl as UnaryMethod["implementation"],
      options,
      protocols: { grpc: grpc !== false, connect: connect !== false },
      serialization: createMethodSerializationLookup(method, options.binaryOptions, options.jsonOptions, options),
      complete: (answer) => create(method.output, answer as MessageInitShape<typeof method.output>),
      live,
    });
  }

  const router: ConnectRouter = {
    handlers: [],
    service(service, implementation, options) {
      for (const spec of Object.values(createServiceImplSpec(service, implementation).methods)) add(spec, options);
      return router;
    },
    rpc(method, implementation, options) {
      add(createMethodImplSpec(method, implementation), options);
      return router;
    },
  };
  routes(router);
  return methods;
}

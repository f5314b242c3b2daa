/*
 * A mesma API em GraphQL: as operações de broker.ts, e mais nada.
 */

import { renderGraphiQL as render_graphiql } from '@graphql-yoga/render-graphiql';
import { GraphQLError as graphql_error } from 'graphql';
import {
  createSchema as create_schema,
  createYoga as create_yoga,
  maskError as mask_error,
} from 'graphql-yoga';
import { http_error } from '../common/web';
import {
  type broker,
  consume,
  create_queue,
  delete_queue,
  publish,
  queue_details,
  queues,
  settle,
  type settlement,
} from './broker';
import type { user } from './users';

/** O que acompanha cada operação. */
type context = { user: user };

const type_definitions = `
  type Counts { total: Int! pending: Int! processing: Int! processed: Int! failed: Int! }
  type Queue { name: String! created_at: String! messages: Counts! }
  type Message {
    id: Int! queue: String! content: String! status: String! deliveries: Int!
    receipt: String created_at: String! updated_at: String!
  }
  type Query {
    queues: [Queue!]!
    queue(name: String!): Queue!
  }
  type Mutation {
    create_queue(name: String!): Queue!
    delete_queue(name: String!): Boolean!
    publish(queue: String!, content: String!): Message!
    consume(queue: String!): Message
    ack(queue: String!, id: Int!, receipt: String!): Message!
    nack(queue: String!, id: Int!, receipt: String!, requeue: Boolean = true): Message!
  }`;

/**
 * Diz quem resolve cada campo.
 * @param broker o broker
 * @returns os resolvedores
 */
function make_resolvers(broker: broker) {
  type named = { name: string };
  type publication = { queue: string; content: string };
  return {
    Query: {
      queues: (_: unknown, __: unknown, { user }: context) => queues(broker, user),
      queue: (_: unknown, { name }: named, { user }: context) => queue_details(broker, user, name),
    },
    Mutation: {
      create_queue: (_: unknown, { name }: named, { user }: context) => {
        return create_queue(broker, user, name);
      },
      delete_queue: (_: unknown, { name }: named, { user }: context) => {
        return delete_queue(broker, user, name);
      },
      publish: (_: unknown, { queue, content }: publication, { user }: context) => {
        return publish(broker, user, queue, content);
      },
      consume: (_: unknown, { queue }: { queue: string }, { user }: context) => {
        return consume(broker, user, queue);
      },
      ack: (_: unknown, given: settlement, { user }: context) => {
        return settle(broker, user, given, 'processed');
      },
      nack: (_: unknown, given: settlement & { requeue: boolean }, { user }: context) => {
        return settle(broker, user, given, given.requeue ? 'pending' : 'failed');
      },
    },
  };
}

/**
 * Faz o GraphQL, sem rota ainda.
 * @param broker o broker
 * @param is_development se há a página de experimentar
 * @returns atende um pedido já autenticado
 */
export function make_graphql(broker: broker, is_development: boolean) {
  const yoga = create_yoga<context>({
    schema: create_schema<context>({
      typeDefs: type_definitions,
      resolvers: make_resolvers(broker),
    }),
    graphiql: is_development,
    renderGraphiQL: render_graphiql,
    landingPage: false,
    logging: false,
    maskedErrors: {
      maskError: (error, message, is_dev) => {
        const cause = error instanceof graphql_error ? error.originalError : error;
        if (!(cause instanceof http_error)) return mask_error(error, message, is_dev);
        return new graphql_error(cause.message, { extensions: { status: cause.status } });
      },
    },
  });
  return (request: Request, user: user) => yoga.fetch(request, { user });
}

// A graphql-ws server on 127.0.0.1 that prints {"port": N} once it listens, and ends by SIGTERM (close code 1001).
//
// connection_init with the payload {"forbidden": true} is refused (4403). Each endless subscription has a tag of the
// caller's, by which `endless` tells how it fared.

import { setTimeout as sleep } from 'node:timers/promises';
import { buildSchema } from 'graphql';
import { useServer } from 'graphql-ws/use/ws';
import { WebSocketServer } from 'ws';

const INIT_TIMEOUT_MS = 2000;
const KEEPALIVE_MS = 3000;
const GOODBYE_MS = 1000;

const schema = buildSchema(`
  type Query {
    hello(name: String = "world"): String!
    fail: String!
    slow(ms: Int!, text: String = "slow"): String!
    endless(tag: String!): Endless!
  }
  type Endless { active: Int! completed: Int! produced: Int! }
  type Subscription {
    count(to: Int!, delay: Int = 0): Int!
    endless(tag: String!, delay: Int = 5): Int!
  }
`);

const tags = new Map();

function tagged(tag) {
  if (!tags.has(tag)) tags.set(tag, { active: 0, completed: 0, produced: 0 });
  return tags.get(tag);
}

const query = {
  hello: ({ name }) => `hello ${name}`,
  fail: () => {
    throw new Error('it always fails');
  },
  slow: async ({ ms, text }) => {
    await sleep(ms);
    return text;
  },
  endless: ({ tag }) => tagged(tag),
};

const subscription = {
  async *count({ to, delay }) {
    for (let n = 0; n < to; n++) {
      if (delay) await sleep(delay);
      yield { count: n };
    }
  },
  async *endless({ tag, delay }) {
    const mine = tagged(tag);
    mine.active++;
    try {
      for (let n = 0; ; n++) {
        mine.produced++;
        yield { endless: n };
        await sleep(delay);
      }
    } finally {
      mine.active--;
      mine.completed++;
    }
  },
};

const sockets = new WebSocketServer({ host: '127.0.0.1', port: 0, path: '/graphql' });
const server = useServer(
  {
    schema,
    roots: { query, subscription },
    connectionInitWaitTimeout: INIT_TIMEOUT_MS,
    onConnect: ({ connectionParams }) => !connectionParams?.forbidden,
  },
  sockets,
  KEEPALIVE_MS,
);
sockets.on('listening', () => console.log(JSON.stringify({ port: sockets.address().port })));
process.once('SIGTERM', async () => {
  // It waits until each client has closed its end; one that does not is left behind.
  await Promise.race([server.dispose(), sleep(GOODBYE_MS)]);
  process.exit(0);
});

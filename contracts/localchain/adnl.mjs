// ADNL over TCP, the server's side: one handshake, then packets in AES-CTR with a checksum each.
// Source: docs.ton.org, "ADNL TCP: liteserver". Owns sockets and ciphers; what a packet means is the caller's business.

import { createCipheriv, createHash, createPrivateKey, createPublicKey, diffieHellman, randomBytes } from 'node:crypto';
import { createServer } from 'node:net';

const HANDSHAKE_BYTES = 256;
const CHECKSUM_BYTES = 32;
const PACKET_BYTES_MIN = 64; // nonce and checksum
const PACKET_BYTES_MAX = 1 << 24;
const CONNECTIONS_MAX = 256;
const KEY_ID_PREFIX = Buffer.from('c6b41348', 'hex'); // pub.ed25519 of ton_api.tl, little-endian
const P = 2n ** 255n - 19n;

/** @typedef {ReturnType<typeof createCipheriv>} Cipher */
/** @typedef {(payload: Buffer) => void} Send */
/** @typedef {(payload: Buffer, send: Send) => Promise<void>} OnPacket */

/** A connection that does not speak the protocol; it is closed. */
export class AdnlError extends Error {}

/** @param {...Buffer} parts */
export function sha256(...parts) {
    const hash = createHash('sha256');
    for (const part of parts) hash.update(part);
    return hash.digest();
}

/** @param {Buffer} seed 32 bytes @returns {Buffer} the Ed25519 public key that clients know the server by */
export function publicKeyOf(seed) {
    const key = createPublicKey(privateKey('302e020100300506032b657004220420', seed));
    return key.export({ format: 'der', type: 'spki' }).subarray(-32);
}

/** A listening server; `refusing` closes connections as they come. */
export class AdnlServer {
    /**
     * @param {Buffer} seed of the server's Ed25519 key, 32 bytes
     * @param {OnPacket} onPacket called for every packet that is not empty
     */
    constructor(seed, onPacket) {
        this.refusing = false;
        this.publicKey = publicKeyOf(seed);
        /** @type {Set<import('node:net').Socket>} */
        this.sockets = new Set();
        const scalar = createHash('sha512').update(seed).digest().subarray(0, 32);
        const secret = privateKey('302e020100300506032b656e04220420', scalar);
        const keyId = sha256(KEY_ID_PREFIX, this.publicKey);
        this.server = createServer((socket) => {
            if (this.refusing) return void socket.destroy();
            this.sockets.add(socket);
            socket.setNoDelay(true);
            socket.on('close', () => this.sockets.delete(socket));
            socket.on('error', () => socket.destroy());
            const connection = new Connection(socket, secret, keyId, onPacket);
            socket.on('data', (chunk) => {
                try {
                    connection.receive(chunk);
                } catch (error) {
                    if (!(error instanceof AdnlError)) throw error;
                    socket.destroy();
                }
            });
        });
        this.server.maxConnections = CONNECTIONS_MAX;
    }

    /** @param {string} host @param {number} port @returns {Promise<number>} the port, chosen where 0 was asked for */
    listen(host, port) {
        return new Promise((resolve, reject) => {
            this.server.once('error', reject);
            this.server.listen(port, host, () => {
                this.server.off('error', reject);
                const address = this.server.address();
                resolve(typeof address === 'object' && address !== null ? address.port : port);
            });
        });
    }

    /** Close every connection; new ones are still taken. */
    disconnect() {
        for (const socket of this.sockets) socket.destroy();
    }

    close() {
        this.server.close();
        this.disconnect();
    }
}

/** One client: bytes in, packets out. */
class Connection {
    /**
     * @param {import('node:net').Socket} socket
     * @param {import('node:crypto').KeyObject} secret X25519
     * @param {Buffer} keyId
     * @param {OnPacket} onPacket
     */
    constructor(socket, secret, keyId, onPacket) {
        this.socket = socket;
        this.secret = secret;
        this.keyId = keyId;
        this.onPacket = onPacket;
        this.pending = Buffer.alloc(0);
        this.packetBytes = 0;
        /** @type {Cipher | undefined} */
        this.incoming = undefined;
        /** @type {Cipher | undefined} */
        this.outgoing = undefined;
    }

    /** @param {Buffer} payload */
    send(payload) {
        if (this.socket.destroyed || !this.outgoing) return;
        const body = Buffer.concat([randomBytes(32), payload]);
        const head = Buffer.alloc(4);
        head.writeUInt32LE(body.length + CHECKSUM_BYTES);
        this.socket.write(this.outgoing.update(Buffer.concat([head, body, sha256(body)])));
    }

    /** @param {Buffer} chunk @throws {AdnlError} */
    receive(chunk) {
        if (this.incoming) {
            this.pending = Buffer.concat([this.pending, this.incoming.update(chunk)]);
        } else {
            const all = Buffer.concat([this.pending, chunk]);
            this.pending = all;
            if (all.length < HANDSHAKE_BYTES) return;
            this.pending = this.#shakeHands(all.subarray(0, HANDSHAKE_BYTES)).update(all.subarray(HANDSHAKE_BYTES));
            this.send(Buffer.alloc(0));
        }
        for (let packet = this.#nextPacket(); packet !== undefined; packet = this.#nextPacket()) {
            if (packet.length > 0) void this.onPacket(packet, (payload) => this.send(payload));
        }
    }

    /** @param {Buffer} hello @returns {Cipher} the cipher of what comes next */
    #shakeHands(hello) {
        if (!hello.subarray(0, 32).equals(this.keyId)) throw new AdnlError('meant for another server');
        const checksum = hello.subarray(64, 96);
        let shared;
        try {
            shared = diffieHellman({ privateKey: this.secret, publicKey: x25519Of(hello.subarray(32, 64)) });
        } catch {
            throw new AdnlError('not a key');
        }
        const key = Buffer.concat([shared.subarray(0, 16), checksum.subarray(16, 32)]);
        const nonce = Buffer.concat([checksum.subarray(0, 4), shared.subarray(20, 32)]);
        const random = cipher(key, nonce).update(hello.subarray(96));
        if (!sha256(random).equals(checksum)) throw new AdnlError('wrong checksum of the handshake');
        this.outgoing = cipher(random.subarray(0, 32), random.subarray(64, 80));
        this.incoming = cipher(random.subarray(32, 64), random.subarray(80, 96));
        return this.incoming;
    }

    /** @returns {Buffer | undefined} the payload of a whole packet that has arrived */
    #nextPacket() {
        if (this.packetBytes === 0) {
            if (this.pending.length < 4) return undefined;
            this.packetBytes = this.pending.readUInt32LE(0);
            this.pending = this.pending.subarray(4);
            if (this.packetBytes < PACKET_BYTES_MIN || this.packetBytes > PACKET_BYTES_MAX) {
                throw new AdnlError('a packet of impossible size');
            }
        }
        if (this.pending.length < this.packetBytes) return undefined;
        const packet = this.pending.subarray(0, this.packetBytes);
        this.pending = this.pending.subarray(this.packetBytes);
        this.packetBytes = 0;
        const body = packet.subarray(0, -CHECKSUM_BYTES);
        if (!sha256(body).equals(packet.subarray(-CHECKSUM_BYTES))) throw new AdnlError('wrong checksum of a packet');
        return body.subarray(32);
    }
}

/** @param {Buffer} key 32 bytes @param {Buffer} nonce 16 bytes */
function cipher(key, nonce) {
    return createCipheriv('aes-256-ctr', key, nonce); // CTR: to decrypt is to encrypt
}

/** @param {string} prefix of the DER form (RFC 8410), in hex @param {Buffer} raw */
function privateKey(prefix, raw) {
    return createPrivateKey({ key: Buffer.concat([Buffer.from(prefix, 'hex'), raw]), format: 'der', type: 'pkcs8' });
}

/** @param {Buffer} ed25519 public @returns {import('node:crypto').KeyObject} u = (1 + y) / (1 - y), RFC 7748 §4.1 */
function x25519Of(ed25519) {
    const y = BigInt(`0x${Buffer.from(ed25519).reverse().toString('hex')}`) & ((1n << 255n) - 1n);
    const u = ((1n + y) * power(P + 1n - (y % P), P - 2n)) % P;
    const raw = Buffer.from(u.toString(16).padStart(64, '0'), 'hex').reverse();
    const der = Buffer.concat([Buffer.from('302a300506032b656e032100', 'hex'), raw]);
    return createPublicKey({ key: der, format: 'der', type: 'spki' });
}

/** @param {bigint} base @param {bigint} exponent @returns {bigint} modulo P */
function power(base, exponent) {
    let result = 1n;
    let square = base % P;
    for (let rest = exponent; rest > 0n; rest >>= 1n) {
        if (rest & 1n) result = (result * square) % P;
        square = (square * square) % P;
    }
    return result;
}

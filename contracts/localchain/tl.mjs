// The TL binary format (core.telegram.org/mtproto/serialize): what a schema line says, read and written.
// Knows nothing about which messages exist; `schema.mjs` says that.

const TRUE = 0x997275b5;
const FALSE = 0xbc799737;
const SHORT_BYTES_MAX = 253;
const VECTOR_ITEMS_MAX = 1 << 16;

/** @typedef {Record<string, any>} Fields fields of one TL object by name; what a type maps to is said at `Schema` */
/** @typedef {{name: string, flag: string | undefined, bit: number, type: string}} Field */
/** @typedef {{id: number, name: string, fields: Field[]}} Constructor */

/** Bytes that do not follow the schema. */
export class TlError extends Error {}

export class Reader {
    /** @param {Buffer} bytes */
    constructor(bytes) {
        this.bytes = bytes;
        this.offset = 0;
    }

    get left() {
        return this.bytes.length - this.offset;
    }

    /** @param {number} length @returns {Buffer} */
    raw(length) {
        if (length > this.left) throw new TlError('the message ends early');
        this.offset += length;
        return this.bytes.subarray(this.offset - length, this.offset);
    }

    int() {
        return this.raw(4).readInt32LE(0);
    }

    uint() {
        return this.raw(4).readUInt32LE(0);
    }

    long() {
        return this.raw(8).readBigInt64LE(0);
    }

    /** @returns {Buffer} */
    string() {
        let length = this.raw(1).readUInt8(0);
        let head = 1;
        if (length > SHORT_BYTES_MAX) {
            length = this.raw(3).readUIntLE(0, 3);
            head = 4;
        }
        const value = this.raw(length);
        this.raw(padding(head + length));
        return value;
    }
}

export class Writer {
    constructor() {
        /** @type {Buffer[]} */
        this.parts = [];
    }

    /** @param {Buffer} bytes */
    raw(bytes) {
        this.parts.push(bytes);
    }

    /** @param {number} value signed or unsigned, 32 bits */
    int(value) {
        const bytes = Buffer.alloc(4);
        bytes.writeInt32LE(value | 0);
        this.raw(bytes);
    }

    /** @param {bigint} value 64 bits, signed or unsigned */
    long(value) {
        const bytes = Buffer.alloc(8);
        bytes.writeBigInt64LE(BigInt.asIntN(64, value));
        this.raw(bytes);
    }

    /** @param {Buffer} value */
    string(value) {
        const short = value.length <= SHORT_BYTES_MAX;
        const head = Buffer.alloc(short ? 1 : 4);
        if (short) head.writeUInt8(value.length);
        else {
            head.writeUInt8(SHORT_BYTES_MAX + 1);
            head.writeUIntLE(value.length, 1, 3);
        }
        this.raw(head);
        this.raw(value);
        this.raw(Buffer.alloc(padding(head.length + value.length)));
    }

    bytes() {
        return Buffer.concat(this.parts);
    }
}

/** @param {number} length */
function padding(length) {
    return (4 - (length % 4)) % 4;
}

/**
 * Constructors by name and by id. Types map to: int, # -> number; long -> bigint; int256, bytes -> Buffer;
 * string -> Buffer; Bool, true -> boolean; vector -> array; a constructor's name -> Fields. A field under a flag that
 * is not set is absent.
 */
export class Schema {
    /** @param {string} text one constructor or function per line; without `#id` the id is the line's CRC32 */
    constructor(text) {
        /** @type {Map<number, Constructor>} */
        this.byId = new Map();
        /** @type {Map<string, Constructor>} */
        this.byName = new Map();
        for (const line of text.split('\n').map((one) => one.trim()).filter(Boolean)) {
            const constructor = parse(line);
            this.byId.set(constructor.id, constructor);
            this.byName.set(constructor.name, constructor);
        }
    }

    /** @param {Reader} reader @returns {{name: string, fields: Fields}} an object with its id before it */
    readBoxed(reader) {
        const id = reader.uint();
        const constructor = this.byId.get(id);
        if (!constructor) throw new TlError(`unknown constructor 0x${id.toString(16).padStart(8, '0')}`);
        return { name: constructor.name, fields: this.#readFields(reader, constructor) };
    }

    /** @param {string} name @param {Fields} fields @returns {Buffer} the object with its id before it */
    boxed(name, fields) {
        const constructor = this.#named(name);
        const writer = new Writer();
        writer.int(constructor.id);
        this.#writeFields(writer, constructor, fields);
        return writer.bytes();
    }

    /** @param {string} name */
    #named(name) {
        const constructor = this.byName.get(name);
        if (!constructor) throw new TlError(`no constructor ${name}`);
        return constructor;
    }

    /** @param {Reader} reader @param {Constructor} constructor @returns {Fields} */
    #readFields(reader, constructor) {
        /** @type {Fields} */
        const fields = {};
        for (const field of constructor.fields) {
            if (isPresent(field, fields)) fields[field.name] = this.#read(reader, field.type);
        }
        return fields;
    }

    /** @param {Writer} writer @param {Constructor} constructor @param {Fields} fields */
    #writeFields(writer, constructor, fields) {
        for (const field of constructor.fields) {
            if (isPresent(field, fields)) this.#write(writer, field.type, fields[field.name]);
        }
    }

    /** @param {Reader} reader @param {string} type @returns {any} */
    #read(reader, type) {
        switch (type) {
            case 'int':
                return reader.int();
            case '#':
                return reader.uint();
            case 'long':
                return reader.long();
            case 'int256':
                return reader.raw(32);
            case 'bytes':
            case 'string':
                return reader.string();
            case 'true':
                return true;
            case 'Bool':
                return reader.uint() === TRUE;
            default: {
                const item = vectorItem(type);
                if (item === undefined) return this.#readFields(reader, this.#named(type));
                const count = reader.uint();
                if (count > VECTOR_ITEMS_MAX) throw new TlError(`a vector of ${count} items`);
                return Array.from({ length: count }, () => this.#read(reader, item));
            }
        }
    }

    /** @param {Writer} writer @param {string} type @param {any} value */
    #write(writer, type, value) {
        switch (type) {
            case 'int':
            case '#':
                return writer.int(value);
            case 'long':
                return writer.long(value);
            case 'int256':
                return writer.raw(value);
            case 'bytes':
            case 'string':
                return writer.string(Buffer.from(value));
            case 'true':
                return undefined;
            case 'Bool':
                return writer.int(value ? TRUE : FALSE);
            default: {
                const item = vectorItem(type);
                if (item === undefined) return this.#writeFields(writer, this.#named(type), value);
                writer.int(value.length);
                for (const one of value) this.#write(writer, item, one);
                return undefined;
            }
        }
    }
}

/** @param {string} line @returns {Constructor} */
function parse(line) {
    const head = line.slice(0, line.indexOf(' '));
    const [name = '', hex] = head.split('#');
    const id = hex === undefined ? crc32(Buffer.from(line.replace(/[()]/g, ''))) : Number.parseInt(hex, 16);
    const body = line.slice(head.length, line.lastIndexOf('='));
    const fields = [...body.matchAll(/(\w+):(?:(\w+)\.(\d+)\?)?(\(vector [^)]+\)|\S+)/g)].map(
        ([, field = '', flag, bit, type = '']) => ({ name: field, flag, bit: Number(bit), type }),
    );
    return { id: id >>> 0, name, fields };
}

/** @param {Field} field @param {Fields} fields */
function isPresent(field, fields) {
    return field.flag === undefined || ((fields[field.flag] >> field.bit) & 1) === 1;
}

/** @param {string} type @returns {string | undefined} */
function vectorItem(type) {
    return type.startsWith('(vector ') ? type.slice('(vector '.length, -1) : undefined;
}

/** @param {Buffer} bytes CRC-32 of ISO 3309, which node:zlib has since version 20.15 only */
function crc32(bytes) {
    let crc = 0xffffffff;
    for (const byte of bytes) {
        crc ^= byte;
        for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

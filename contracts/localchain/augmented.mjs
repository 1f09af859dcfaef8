// HashmapAug n X Y of block.tlb as an immutable tree: a change makes new nodes along one path and keeps all others,
// so that many states of a chain share what did not change. The augmentation is a sum of nanos.

import { beginCell } from '@ton/core';

/** @typedef {import('@ton/core').Cell} Cell */
/** @typedef {import('@ton/core').Builder} Builder */
/** @typedef {(builder: Builder, sum: bigint) => void} WriteSum */
/** @typedef {{key: string, from: number, to: number, sum: bigint, value: Cell, cell?: Cell}} Leaf */
/** @typedef {{key: string, from: number, to: number, sum: bigint, left: Node, right: Node, cell?: Cell}} Fork */
/** @typedef {Leaf | Fork} Node `key` is that of any leaf below; the node's label is its bits [from, to) */

/** @param {Buffer} bytes @returns {string} as zeros and ones */
export function bitsOf(bytes) {
    return [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
}

export class AugmentedTree {
    /**
     * @param {number} width bits of a key
     * @param {WriteSum} writeSum
     * @param {Node} [root] absent in an empty tree
     */
    constructor(width, writeSum, root) {
        this.width = width;
        this.writeSum = writeSum;
        this.root = root;
    }

    get sum() {
        return this.root?.sum ?? 0n;
    }

    /** @returns {Cell | undefined} HashmapAug; undefined when empty, which only HashmapAugE can say */
    get cell() {
        return this.root && this.#cellOf(this.root);
    }

    /** @param {string} key zeros and ones @param {bigint} sum its part of the sum @param {Cell} value stored in place */
    set(key, sum, value) {
        const root = this.root ? this.#insert(this.root, key, sum, value) : leaf(key, 0, sum, value);
        return new AugmentedTree(this.width, this.writeSum, root);
    }

    /** @param {string} key */
    delete(key) {
        return new AugmentedTree(this.width, this.writeSum, this.root && this.#remove(this.root, key));
    }

    /** @param {string} key @returns {Cell | undefined} */
    get(key) {
        let node = this.root;
        while (node !== undefined && 'left' in node && matches(node, key)) node = child(node, key);
        return node !== undefined && !('left' in node) && node.key === key ? node.value : undefined;
    }

    /** @returns {Generator<[string, Cell]>} keys and values */
    *entries() {
        /** @type {Node[]} */
        const stack = this.root ? [this.root] : [];
        for (let node = stack.pop(); node; node = stack.pop()) {
            if ('left' in node) stack.push(node.right, node.left);
            else yield [node.key, node.value];
        }
    }

    /** @param {string} key @returns {Cell[]} the cells that show the key's value, or that there is none */
    path(key) {
        const cells = [];
        for (let node = this.root; node !== undefined; ) {
            cells.push(this.#cellOf(node));
            node = 'left' in node && matches(node, key) ? child(node, key) : undefined;
        }
        return cells;
    }

    /** @returns {Cell[]} every cell of the tree itself, without what values refer to */
    cells() {
        /** @param {Node} node @returns {Cell[]} */
        const below = (node) => [
            this.#cellOf(node),
            ...('left' in node ? [...below(node.left), ...below(node.right)] : []),
        ];
        return this.root ? below(this.root) : [];
    }

    /** @param {Builder} builder as HashmapAugE: a bit, the tree, the sum */
    store(builder) {
        builder.storeMaybeRef(this.cell ?? null);
        this.writeSum(builder, this.sum);
        return builder;
    }

    /** @param {Node} node @param {string} key @param {bigint} sum @param {Cell} value @returns {Node} */
    #insert(node, key, sum, value) {
        let split = node.from;
        while (split < node.to && node.key[split] === key[split]) split += 1;
        if (split < node.to) {
            const { cell: _, ...kept } = node;
            return fork(key, node.from, split, { ...kept, from: split + 1 }, leaf(key, split + 1, sum, value));
        }
        if (!('left' in node)) return leaf(key, node.from, sum, value);
        const below = this.#insert(child(node, key), key, sum, value);
        const other = key[node.to] === '0' ? node.right : node.left;
        return fork(key, node.from, node.to, other, below);
    }

    /** @param {Node} node @param {string} key @returns {Node | undefined} */
    #remove(node, key) {
        if (!matches(node, key)) return node;
        if (!('left' in node)) return undefined;
        const below = this.#remove(child(node, key), key);
        const other = key[node.to] === '0' ? node.right : node.left;
        if (below !== undefined) return fork(key, node.from, node.to, other, below);
        const { cell: _, ...kept } = other;
        return { ...kept, from: node.from };
    }

    /** @param {Node} node @returns {Cell} */
    #cellOf(node) {
        if (node.cell) return node.cell;
        const builder = beginCell();
        storeLabel(builder, node.key.slice(node.from, node.to), this.width - node.from);
        if ('left' in node) {
            builder.storeRef(this.#cellOf(node.left)).storeRef(this.#cellOf(node.right));
            this.writeSum(builder, node.sum);
        } else {
            this.writeSum(builder, node.sum);
            builder.storeSlice(node.value.beginParse());
        }
        node.cell = builder.endCell();
        return node.cell;
    }
}

/** @param {string} key @param {number} from @param {bigint} sum @param {Cell} value @returns {Leaf} */
function leaf(key, from, sum, value) {
    return { key, from, to: key.length, sum, value };
}

/** @param {string} key of `changed` @param {number} from @param {number} to @param {Node} other @param {Node} changed @returns {Fork} */
function fork(key, from, to, other, changed) {
    const sides = key[to] === '0' ? { left: changed, right: other } : { left: other, right: changed };
    return { key, from, to, sum: other.sum + changed.sum, ...sides };
}

/** @param {Fork} node @param {string} key */
function child(node, key) {
    return key[node.to] === '0' ? node.left : node.right;
}

/** @param {Node} node @param {string} key */
function matches(node, key) {
    return node.key.slice(node.from, node.to) === key.slice(node.from, node.to);
}

/**
 * HmLabel ~n m of hashmap.tlb, in the shortest of its three forms as every node requires.
 * @param {Builder} builder @param {string} label @param {number} max bits that the label could have
 */
function storeLabel(builder, label, max) {
    const length = label.length;
    const lengthBits = max === 0 ? 0 : Math.floor(Math.log2(max)) + 1;
    const short = 2 + 2 * length;
    const long = 2 + lengthBits + length;
    const same = length > 0 && (!label.includes('1') || !label.includes('0')) ? 3 + lengthBits : Infinity;
    if (same < short && same < long) {
        builder.storeUint(0b11, 2).storeBit(label.startsWith('1')).storeUint(length, lengthBits);
        return;
    }
    if (short <= long) {
        builder.storeBit(0);
        for (let i = 0; i < length; i += 1) builder.storeBit(1);
        builder.storeBit(0);
    } else {
        builder.storeUint(0b10, 2).storeUint(length, lengthBits);
    }
    for (const bit of label) builder.storeBit(bit === '1');
}

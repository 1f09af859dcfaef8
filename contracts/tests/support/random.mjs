/** Numbers that look random and are the same for a seed (mulberry32, public domain). */
export class Random {
    /** @param {number} seed */
    constructor(seed) {
        this.state = seed >>> 0;
    }

    /** @returns {number} from 0 up to 1, without 1 */
    next() {
        this.state = (this.state + 0x6d2b79f5) >>> 0;
        let mixed = this.state;
        mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
        mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
        return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    }

    /** @param {number} low @param {number} high @returns {number} an integer, both ends included */
    between(low, high) {
        return low + Math.floor(this.next() * (high - low + 1));
    }

    /** @param {bigint} most @returns {bigint} nano from 0 to `most`; now and then an end or the next nano to it */
    amount(most) {
        const edge = this.between(0, 9);
        if (edge < 3) {
            return [0n, most, most > 0n ? most - 1n : 0n][edge] ?? 0n;
        }
        return (most * BigInt(this.between(0, 1_000_000))) / 1_000_000n;
    }

    /** @param {number} chance @returns {boolean} */
    chance(chance) {
        return this.next() < chance;
    }

    /** @template T @param {readonly T[]} items @returns {T} */
    pick(items) {
        const item = items[this.between(0, items.length - 1)];
        if (item === undefined) {
            throw new Error('nothing to pick from');
        }
        return item;
    }
}

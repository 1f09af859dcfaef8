/**
 * The configuration of the development network: the sandbox's own with today's prices and our global id.
 *
 * The sandbox ships older prices, about six times as high. Parameters: 18 storage, 19 global id, 21 gas in the
 * basechain, 25 forwarding in the basechain (block.tlb). The numbers are those that TON's network used in August 2026.
 */
import { Cell, Dictionary, beginCell } from '@ton/core';
import { defaultConfig } from '@ton/sandbox';

/** The development network's, and TON's test network's; never -239, which is where money is real. */
export const GLOBAL_ID = -3;

/** Nano per 65536 units of gas. */
const GAS_PRICE = 4369067;

/** @param {...[number, number]} fields value and width in bits */
function cellOf(...fields) {
    const builder = beginCell();
    for (const [value, bits] of fields) {
        builder.storeUint(value, bits);
    }
    return builder.endCell();
}

function gasPrices() {
    return cellOf(
        [0xd1, 8], [100, 64], [6667, 64], // flat part
        [0xde, 8], [GAS_PRICE, 64], [1_000_000, 64], [1_000_000, 64], [10_000, 64],
        [10_000_000, 64], [100_000_000, 64], [1_000_000_000, 64],
    );
}

function forwardPrices() {
    return cellOf([0xea, 8], [66_667, 64], [GAS_PRICE, 64], [436_906_667, 64], [98_304, 32], [21_845, 16], [21_845, 16]);
}

function storagePrices() {
    /** @type {Dictionary<number, Cell>} */
    const prices = Dictionary.empty(Dictionary.Keys.Uint(32), inline());
    // since (Unix s), basechain per bit and cell, masterchain per bit and cell, in nano per 2^16 s
    const periods = /** @type {const} */ ([[0, 1, 500, 1000, 500_000], [1_777_500_000, 0, 135, 1000, 500_000]]);
    for (const [since, ...rates] of periods) {
        prices.set(since, cellOf([0xcc, 8], [since, 32], ...rates.map((rate) => /** @type {[number, number]} */ ([rate, 64]))));
    }
    return beginCell().storeDictDirect(prices).endCell();
}

/** @returns {import('@ton/core').DictionaryValue<Cell>} a cell's bits in the place of a reference to it */
function inline() {
    return {
        serialize: (cell, builder) => builder.storeSlice(cell.beginParse()),
        parse: (slice) => slice.asCell(),
    };
}

/** @returns {Cell} the whole configuration, for `Blockchain.create({ config })` */
export function networkConfig() {
    const config = Cell.fromBase64(defaultConfig)
        .beginParse()
        .loadDictDirect(Dictionary.Keys.Int(32), Dictionary.Values.Cell());
    config.set(18, storagePrices());
    config.set(19, beginCell().storeInt(GLOBAL_ID, 32).endCell());
    config.set(21, gasPrices());
    config.set(25, forwardPrices());
    return beginCell().storeDictDirect(config).endCell();
}

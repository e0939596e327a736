package tffperfedavg

import java.io.Closeable

/**
 * A signature's runner. Arrays have the sizes of the signature's inputs, since runtimes
 * write beyond their memory, or resize, where they do not. Not thread-safe.
 */
interface Runtime : Closeable {
    /** Returns the outputs asked for, flattened: `FloatArray` or `IntArray`. */
    fun run(
        signature: String,
        floats: Map<String, FloatArray>,
        ints: Map<String, IntArray> = emptyMap(),
        floatOutputs: Map<String, Int> = emptyMap(),
        intOutputs: Map<String, Int> = emptyMap()
    ): Map<String, Any>
}

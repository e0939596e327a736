// What the Kotlin client calls of others, declared as their public interfaces are.
package org.tensorflow.lite

import java.io.Closeable
import java.io.File

class Tensor {
    fun shape(): IntArray = TODO()
}

class Interpreter(modelFile: File, options: Options?) : Closeable {
    class Options {
        fun setNumThreads(numThreads: Int): Options = this
    }

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signatureKey: String): Unit = TODO()
    fun getInputTensorFromSignature(inputName: String, signatureKey: String): Tensor = TODO()
    fun getSignatureInputs(signatureKey: String): Array<String> = TODO()
    override fun close(): Unit = TODO()
}

// Runs what needs no runtime: checks a file's checksum, finds its card, keeps examples.
package tffperfedavg

import java.io.File

fun main(arguments: Array<String>) {
    val (model, directory) = arguments
    println(ModelFile(File(model)).cardText)
    val examples = Examples(12, 2, 4)
    for (number in 0 until 50) {
        examples.add(floatArrayOf(number.toFloat(), 1f), number % 7 % 4)
    }
    val file = File(directory, "examples.bin")
    examples.save(file)
    val again = Examples(12, 2, 4)
    again.load(file)
    println(again.toLearn().joinToString(" ") { "${it.x[0].toInt()}:${it.label}" })
    println(again.toCheck().joinToString(" ") { "${it.x[0].toInt()}:${it.label}" })
}
